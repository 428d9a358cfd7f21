"""Pictures of what a model has learned, each by one command, as PNG.

python -m training.pictures codebook codes/train                       how often each code of extracted shards is used
python -m training.pictures phones runs/vq/model /my/corpus --split dev     which phone each code stands for, and PNMI
python -m training.pictures attention runs/mine/model clip.flac --layers 0 5 11      where each head looks

Learning curves and the accuracy against the step predicted are those of `training.curves`.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor

from hf_wav2vec_family.audio_reading import read_audio
from hf_wav2vec_family.metrics.purity import code_purity
from hf_wav2vec_family.quantizers import code_usage

from .alignments import aligned_batches
from .curves import import_pyplot, save_figure
from .extract_codes import load_quantizing_model, read_codes
from .front_ends import load_model
from .probe_tasks import nearest_frames
from .sources import Source

# a map of more frames shows no single one
SHOWN_SECONDS = 4.0


def draw_codebook(codes: Tensor, num_codevectors: int, output: Path):
    """One square per entry of each group in rows of equal length, the share of frames as its shade, unused ones grey;
    for two groups also how often each pair of entries goes together, both from the most frequent on. Writes a PNG.

    Args:
        codes: [N, G].
    """
    pyplot = import_pyplot()
    from matplotlib.colors import LogNorm

    usage = code_usage(codes, num_codevectors)
    groups, width = codes.shape[1], math.ceil(math.sqrt(1.6 * num_codevectors))
    height = math.ceil(num_codevectors / width)
    shares = usage.counts.double() / len(codes)
    norm = LogNorm(vmin=max(1 / len(codes), 1e-6), vmax=float(shares.max()))
    colours = pyplot.get_cmap("viridis").with_extremes(bad="#bbbbbb")
    panels = groups + (groups == 2)
    # a low row for the scale
    figure, axes = pyplot.subplots(2, panels, figsize=(4.2 * panels, 3.6), squeeze=False, height_ratios=[1, 0.05])
    for axis in axes[1, 1:]:
        axis.set_axis_off()
    for group, axis in enumerate(axes[0, :groups]):
        cells = np.full(width * height, np.nan)
        cells[:num_codevectors] = np.where(shares[group] > 0, shares[group], np.nan)
        cells = np.ma.masked_invalid(cells).reshape(height, width)
        picture = axis.imshow(cells, norm=norm, cmap=colours, aspect="auto")
        # what fills up the last row is no entry
        for place in range(num_codevectors, width * height):
            axis.add_patch(pyplot.Rectangle((place % width - 0.5, place // width - 0.5), 1, 1, color="white"))
        used = int((usage.counts[group] > 0).sum())
        axis.set_title(f"group {group}: {used} of {num_codevectors} entries used", fontsize=9)
        axis.set(xticks=[], yticks=[])
    figure.colorbar(picture, cax=axes[1, 0], orientation="horizontal", label="share of frames (grey: never)")
    if groups == 2:
        orders = [counts.argsort(descending=True) for counts in usage.counts]
        ranks = torch.stack([order.argsort()[codes[:, g]] for g, order in enumerate(orders)])
        pairs = np.zeros((num_codevectors, num_codevectors))
        np.add.at(pairs, tuple(ranks.numpy()), 1)
        most = [max(int((counts > 0).sum()), 1) for counts in usage.counts]
        axis, counted = axes[0, -1], np.ma.masked_equal(pairs[: most[0], : most[1]], 0)
        axis.imshow(counted, norm=LogNorm(), origin="lower", aspect="auto", cmap=colours)
        axis.set_title(f"{usage.num_used_tuples:,} pairs in {len(codes):,} frames", fontsize=9)
        axis.set_xlabel("entry of group 1, the most frequent first", fontsize=8)
        axis.set_ylabel("entry of group 0, the most frequent first", fontsize=8)
    save_figure(figure, output)


@torch.no_grad()
def codes_and_phones(model, batches, sampling_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N, G] and phones [N] at every labelled 10 ms."""
    codes, phones = [], []
    for batch in batches:
        found = model.quantize(batch["input_values"], batch["attention_mask"])
        lengths = model.num_frames(batch["attention_mask"].sum(dim=-1)).tolist()
        for row, alignment in enumerate(batch["alignments"]):
            centers = model.base_model.frame_centers(lengths[row]) / sampling_rate
            codes.append(found[row, nearest_frames(centers, torch.from_numpy(alignment.times))].numpy())
            phones.append(alignment.phones)
    return np.concatenate(codes), np.concatenate(phones)


def draw_phones(codes: np.ndarray, phones: np.ndarray, output: Path):
    """P(phone | code), a column per code of the tuples that occur, sorted by the phone each most often is, a row per
    phone from the most frequent on (figure 3 of Hsu et al., 2021, arXiv:2106.07447). Writes a PNG."""
    pyplot = import_pyplot()
    purity = code_purity(codes, phones)
    tuples, code = np.unique(codes, axis=0, return_inverse=True)
    names, phone = np.unique(phones, return_inverse=True)
    joint = np.zeros((len(names), len(tuples)))
    np.add.at(joint, (phone, code.reshape(-1)), 1)
    by_frequency = joint.sum(axis=1).argsort()[::-1]
    joint, names = joint[by_frequency], names[by_frequency]
    given_code = joint / joint.sum(axis=0)
    columns = np.lexsort((-given_code.max(axis=0), given_code.argmax(axis=0)))
    # as wide as its frames, or thousands of codes that occur once hide those that matter
    widths = joint.sum(axis=0)[columns]
    edges = np.concatenate([[0], widths.cumsum()]) / widths.sum()
    figure, axis = pyplot.subplots(figsize=(9, 0.17 * len(names) + 1.6))
    picture = axis.pcolormesh(edges, np.arange(len(names) + 1), given_code[:, columns], cmap="magma_r", vmin=0, vmax=1)
    axis.set(yticks=np.arange(len(names)) + 0.5, yticklabels=names, ylim=(len(names), 0))
    axis.tick_params(labelsize=7)
    axis.set_xlabel(f"{len(tuples):,} codes, each as wide as its share of {len(codes):,} frames", fontsize=8)
    axis.set_title(
        f"P(phone | code):  PNMI {purity.pnmi:.3f},  phone purity {purity.phone_purity:.3f},"
        f"  cluster purity {purity.cluster_purity:.3f}",
        fontsize=9,
    )
    figure.colorbar(picture, ax=axis, fraction=0.03, pad=0.01)
    save_figure(figure, output)


@torch.no_grad()
def attentions_of(folder: str, clip: str, layers: list[int] | None) -> tuple[dict[int, np.ndarray], float]:
    """{layer: [heads, T, T]} of the first seconds of a file, and the seconds from one frame to the next.

    Raises:
        ValueError: a model without attention, or without a layer that is asked for.
    """
    model = load_model(folder).base_model
    if not hasattr(model.config, "num_attention_heads") or not hasattr(model, "feature_projection"):
        raise ValueError(f"{folder} holds a {type(model).__name__}; attention maps are for wav2vec 2.0.")
    model.set_attn_implementation("eager")
    extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder)
    waveform = read_audio(clip, extractor.sampling_rate)[: int(SHOWN_SECONDS * extractor.sampling_rate)]
    inputs = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt").input_values
    maps = model(inputs, output_attentions=True).attentions
    wanted = layers or sorted({0, len(maps) // 2, len(maps) - 1})
    if not all(0 <= layer < len(maps) for layer in wanted):
        raise ValueError(f"layers: {wanted} must lie between 0 and {len(maps) - 1}.")
    return {layer: maps[layer][0].numpy() for layer in wanted}, model.config.inputs_to_logits_ratio / 16_000


def draw_attention(maps: dict[int, np.ndarray], hop_seconds: float, output: Path):
    """A row per layer, a column per head: from the frame that looks (down) to the frame looked at (across)."""
    pyplot = import_pyplot()
    heads = max(len(of_layer) for of_layer in maps.values())
    figure, axes = pyplot.subplots(len(maps), heads, figsize=(1.7 * heads + 0.6, 1.8 * len(maps) + 0.5), squeeze=False)
    for row, (layer, of_layer) in zip(axes, maps.items(), strict=True):
        for head, (axis, weights) in enumerate(zip(row, of_layer, strict=True)):
            seconds = len(weights) * hop_seconds
            # the square root, since a head that looks everywhere would be black
            axis.imshow(np.sqrt(weights), cmap="magma", extent=(0, seconds, seconds, 0), vmin=0)
            axis.tick_params(labelsize=6)
            axis.set_title(f"layer {layer}, head {head}", fontsize=7)
            if head:
                axis.set_yticklabels([])
    axes[-1, 0].set_xlabel("looked at, s", fontsize=7)
    axes[-1, 0].set_ylabel("looks, s", fontsize=7)
    save_figure(figure, output)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pictures = parser.add_subparsers(dest="picture", required=True, metavar="PICTURE")
    codebook = pictures.add_parser("codebook", help="use of each entry, of the shards of training.extract_codes")
    codebook.add_argument("folder", type=Path, help="with the shards and usage.json")
    phones = pictures.add_parser("phones", help="which phone each code of a vq-wav2vec stands for")
    phones.add_argument("model", help="folder or Hub id of a vq-wav2vec")
    phones.add_argument("corpus", help="with the columns phones and phone_start_s")
    phones.add_argument("--name", help="configuration of a Hub data set")
    phones.add_argument("--split", default="test")
    phones.add_argument("--seconds", type=float, help="a budget; all if not given")
    phones.add_argument("--batch-seconds", type=float, default=60.0)
    attention = pictures.add_parser("attention", help="attention maps of a wav2vec 2.0")
    attention.add_argument("model", help="folder or Hub id of a wav2vec 2.0")
    attention.add_argument("clip", help="audio file, of which the beginning is looked at")
    attention.add_argument("--layers", nargs="+", type=int, help="from 0; first, middle and last if not given")
    for one in (codebook, phones, attention):
        one.add_argument("--output", type=Path, help="by default PICTURE.png")
    options = parser.parse_args(arguments)
    options.output = options.output or Path(f"{options.picture}.png")
    return options


def main(arguments: list[str] | None = None):
    options = parse_arguments(arguments)
    if options.picture == "codebook":
        described = json.loads((options.folder / "usage.json").read_text())
        codes = torch.cat([read_codes(path) for path in sorted(options.folder.glob("*.parquet"))])
        draw_codebook(codes, described["num_codevectors_per_group"], options.output)
    elif options.picture == "phones":
        model = load_quantizing_model(options.model)
        extractor = transformers.Wav2Vec2FeatureExtractor.from_pretrained(options.model)
        source = Source(options.corpus, options.name, options.split)
        batches = aligned_batches(
            source, extractor, batch_seconds=options.batch_seconds, budget_seconds=options.seconds
        )
        draw_phones(*codes_and_phones(model, batches, extractor.sampling_rate), options.output)
    else:
        draw_attention(*attentions_of(options.model, options.clip, options.layers), options.output)
    print(options.output)


if __name__ == "__main__":
    main()
