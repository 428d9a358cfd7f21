"""Pictures of a clip: its codes over its spectrogram, and the last seconds of a stream."""

import numpy as np
import torch

from ..log_mel import LogMel

HIGHEST = 24


def as_shades(values: np.ndarray, name: str = "magma") -> np.ndarray:
    """[rows, columns] numbers -> [rows, columns, 3] uint8, the lowest and highest hundredth at the ends of the map."""
    from matplotlib import colormaps

    low, high = np.percentile(values, [1, 99])
    return (colormaps[name](np.clip((values - low) / max(high - low, 1e-9), 0, 1))[..., :3] * 255).astype(np.uint8)


def draw_codes(
    waveform: np.ndarray, codes: np.ndarray, centers: np.ndarray, num_codevectors: int, *, begin: float = 0.0
):
    """A figure: log-mel spectrogram of a waveform [S] at 16 kHz, and beneath it the codes [T, G] in colours.

    Args:
        centers: [T] seconds, where each frame looks. num_codevectors: V; neighbouring numbers mean nothing, so that
            colours are shuffled. A run of one code is one block.
        begin: second of the recording that the waveform begins at.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    groups, end = codes.shape[1], begin + len(waveform) / 16_000
    figure = Figure(figsize=(11, 3.2 + 0.55 * groups), layout="constrained")
    above, *strips = figure.subplots(1 + groups, 1, sharex=True, height_ratios=[5] + [1] * groups)
    log_mel = LogMel()(torch.from_numpy(waveform)[None])[0].T.numpy()
    above.imshow(
        log_mel,
        origin="lower",
        aspect="auto",
        cmap="magma",
        extent=(begin, end, 0, len(log_mel)),
        vmin=np.percentile(log_mel, 5),
    )
    above.set(ylabel="mel band", title="log-mel spectrogram and codes")
    colours = colormaps["turbo"](np.random.default_rng(0).permutation(num_codevectors) / max(num_codevectors - 1, 1))
    half = (centers[1] - centers[0]) / 2 if len(centers) > 1 else (end - begin) / 2
    for group, strip in enumerate(strips):
        extent = (centers[0] - half, centers[-1] + half, 0, 1)
        strip.imshow(colours[codes[:, group]][None], aspect="auto", extent=extent, interpolation="nearest")
        used, runs = len(np.unique(codes[:, group])), 1 + np.count_nonzero(np.diff(codes[:, group]))
        strip.set(yticks=[], ylabel=f"group {group}", xlim=(begin, end))
        strip.set_title(
            f"{used} of {num_codevectors} entries in {len(codes)} frames, {runs} runs", fontsize=8, loc="right", pad=2
        )
    strips[-1].set_xlabel("seconds")
    return figure


def draw_window(features: np.ndarray, codes: np.ndarray | None, height: int = 4) -> np.ndarray:
    """The last frames of a stream as an image: features [T, H] as shades, the first unit at the bottom; above them a
    strip of colours for each group of codes [T, G], where there are any. Returns [rows, columns, 3] uint8."""
    from matplotlib import colormaps

    shades = as_shades(features.T[::-1])
    shades = shades.repeat(max(1, 256 // len(shades)), axis=0).repeat(height, axis=1)
    if codes is None:
        return shades
    colours = (colormaps["turbo"]((codes.T * 0.618034) % 1)[..., :3] * 255).astype(np.uint8)  # [G, T, 3]
    return np.concatenate([colours.repeat(HIGHEST, axis=0).repeat(height, axis=1), shades])
