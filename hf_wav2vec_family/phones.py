"""The symbols of the papers' acoustic models: phones of TIMIT and of the CMU dictionary, graphemes of WSJ."""

import re
from collections.abc import Iterable

# Lee and Hon, 1989 (IEEE Transactions on ASSP 37:11): 61 phones as transcribed, 48 to train on, 39 to score.
# Each group is one phone of the 48, named first, and the phones of the 61 that become it.
_TIMIT_48_OF_61 = """
    iy  ih  eh  ae  ix  ax:ax,ax-h  ah  uw:uw,ux  uh  ao  aa  ey  ay  oy  aw  ow  l  el  r  y  w  er:er,axr  m:m,em
    n:n,nx  en  ng:ng,eng  ch  jh  dh  b  d  dx  g  p  t  k  z  zh  v  f  th  s  sh  hh:hh,hv
    cl:pcl,tcl,kcl  vcl:bcl,dcl,gcl  epi  sil:h#,pau
"""
_TIMIT_39_OF_48 = {
    "ix": "ih",
    "ax": "ah",
    "ao": "aa",
    "el": "l",
    "en": "n",
    "zh": "sh",
    "cl": "sil",
    "vcl": "sil",
    "epi": "sil",
}


def _parse_groups(groups: str) -> dict[str, str]:
    named = (group.partition(":") for group in groups.split())
    return {member: name for name, _, members in named for member in (members or name).split(",")}


_TO_48 = _parse_groups(_TIMIT_48_OF_61)
_TO_39 = {phone: _TIMIT_39_OF_48.get(phone, phone) for phone in _TO_48.values()}

# The glottal stop q is transcribed, but neither trained on nor scored
TIMIT_61 = tuple(sorted([*_TO_48, "q"]))
TIMIT_48 = tuple(sorted(_TO_39))
TIMIT_39 = tuple(sorted(set(_TO_39.values())))

# The CMU pronouncing dictionary, without stress
_CMU = "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"
CMU_39 = tuple(_CMU.split())

# Collobert et al., 2016: word boundary, apostrophe, period, letters, and "once more", "twice more" (replabels.py)
WSJ_GRAPHEMES = ("|", "'", ".", *"abcdefghijklmnopqrstuvwxyz", "1", "2")


def fold_timit_phone(phone: str, num_phones: int = 39) -> str | None:
    """A phone of TIMIT's 61 (or 48) among the 61, 48 or 39 that are asked for; None for `q`, which 48 and 39 lack.

    Raises:
        ValueError: not a phone of TIMIT, or no set of that size.
    """
    if num_phones not in (61, 48, 39):
        raise ValueError(f"num_phones: expected 61, 48 or 39, got {num_phones!r}.")
    known = phone in TIMIT_61 if num_phones == 61 else phone == "q" or phone in _TO_48 or phone in _TO_39
    if not known:
        raise ValueError(f"phone: expected one of TIMIT's, got {phone!r}.")
    if num_phones == 61:
        return phone
    of_48 = _TO_48.get(phone, phone)
    return None if phone == "q" else of_48 if num_phones == 48 else _TO_39[of_48]


def timit_map(num_phones: int = 39) -> dict[str, str | None]:
    """What each phone of TIMIT's 61 and 48 is among the 61, 48 or 39 that are asked for, None for `q`: the `phone_map`
    of the phone error rate.

    Raises:
        ValueError: no set of that size.
    """
    known = TIMIT_61 if num_phones == 61 else sorted({*TIMIT_61, *TIMIT_48})
    return {phone: fold_timit_phone(phone, num_phones) for phone in known}


def strip_stress(phones: Iterable[str]) -> list[str]:
    """CMU phones without the stress marks of their vowels: `AH0` -> `AH`.

    Raises:
        ValueError: not a phone of the CMU dictionary.
    """
    plain = [re.sub(r"(?<=[A-Z])[012]$", "", phone) for phone in phones]
    if unknown := sorted(set(plain) - set(CMU_39)):
        raise ValueError(f"phones: expected those of the CMU dictionary, got {', '.join(unknown)}.")
    return plain
