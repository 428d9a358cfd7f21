"""How much the codes of a quantizer say about phones: purities and mutual information.

Hsu et al., 2021, HuBERT (arXiv:2106.07447), section IV-E.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class CodePurity:
    """With p(i, j) the share of frames of phone i and code j:

    Args:
        phone_purity: the share of frames that have the most frequent phone of their code.
        cluster_purity: the share of frames that have the most frequent code of their phone.
        pnmi: mutual information of phone and code over the entropy of the phone; 1 if the code tells the phone.

    More codes make the phone purity better and the cluster purity worse, down to one frame per code.
    """

    phone_purity: float
    cluster_purity: float
    pnmi: float


def code_purity(codes: np.ndarray | Sequence[int], phones: np.ndarray | Sequence[str]) -> CodePurity:
    """Of `codes` [N] or, for several groups, [N, G], whose tuples count as one code each, and `phones` [N].

    Raises:
        ValueError: no frames, not as many codes as phones, or a single phone, of which nothing can be said.
    """
    codes, phones = np.asarray(codes), np.asarray(phones)
    if not 0 < len(codes) == len(phones):
        raise ValueError(f"codes and phones: expected as many of both, and some, got {len(codes)} and {len(phones)}.")
    _, code = np.unique(codes.reshape(len(codes), -1), axis=0, return_inverse=True)
    names, phone = np.unique(phones, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"phones: expected at least two different ones, got {names.tolist()}.")
    joint = np.zeros((len(names), code.max() + 1))
    np.add.at(joint, (phone, code.reshape(-1)), 1 / len(codes))
    of_phone, of_code = joint.sum(axis=1, keepdims=True), joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    information = (joint[seen] * np.log(joint[seen] / (of_phone * of_code)[seen])).sum()
    entropy = -(of_phone * np.log(of_phone)).sum()
    return CodePurity(
        phone_purity=float(joint.max(axis=0).sum()),
        cluster_purity=float(joint.max(axis=1).sum()),
        pnmi=float(information / entropy),
    )
