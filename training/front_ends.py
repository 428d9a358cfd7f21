"""What turns clips into the frames that are judged, and where each frame is: models, random weights, MFCC, log-mel."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import transformers
from torch import Tensor, nn

from hf_wav2vec_family.conv import frame_centers
from hf_wav2vec_family.export.opening import model_class
from hf_wav2vec_family.log_mel import MFCC, LogMel

BASELINES = {"mfcc": MFCC, "log_mel": LogMel}
LAYERS = {"c": "last_hidden_state", "z": "extract_features", "q": "quantized_features"}


@dataclass
class FrontEnd:
    """What turns clips into frames.

    Args:
        encode: (`input_values` [B, S], `attention_mask` [B, S]) -> the [B, T, D] of each layer by its name; a baseline
            has one layer, of its own name.
        num_frames: valid samples [B] -> valid frames [B].
        centers: T -> the sample [T] that each frame is centred at.
        feature_extractor: of the clips.
    """

    encode: Callable[[Tensor, Tensor], dict[str, Tensor]]
    num_frames: Callable[[Tensor], Tensor]
    centers: Callable[[int], Tensor]
    feature_extractor: transformers.Wav2Vec2FeatureExtractor

    def seconds(self, num_frames: int) -> Tensor:
        """[num_frames], when each frame is."""
        return self.centers(num_frames) / self.feature_extractor.sampling_rate

    def clips(self, batch: dict, device: str) -> list[dict[str, Tensor]]:
        """The frames [T, D] of each layer of each clip of a batch, in float32 on the CPU, without padding.

        Raises:
            ValueError: a layer whose frames are not those of the convolutions.
        """
        mask = batch["attention_mask"].to(device)
        layers = self.encode(batch["input_values"].to(device), mask)
        expected = int(self.num_frames(mask.shape[-1]))
        for layer, frames in layers.items():
            if frames.shape[1] != expected:
                raise ValueError(
                    f"layer: {layer} has {frames.shape[1]} frames where the convolutions make {expected}; without a"
                    " centre for each frame, as behind an adapter, it cannot be judged."
                )
        lengths = self.num_frames(batch["attention_mask"].sum(dim=-1)).tolist()
        on_cpu = {layer: frames.float().cpu() for layer, frames in layers.items()}
        return [{layer: frames[row, :n] for layer, frames in on_cpu.items()} for row, n in enumerate(lengths)]


def load_model(folder: str, random_seed: int | None = None) -> transformers.PreTrainedModel:
    """The model of a folder with its heads; with a `random_seed`, one like it with weights as training begins."""
    found = model_class(folder)
    if random_seed is None:
        return found.from_pretrained(folder).eval()
    transformers.set_seed(random_seed)
    return found(found.config_class.from_pretrained(folder)).eval()


def frames_of(
    encoder: nn.Module, layers: Sequence[str], input_values: Tensor, attention_mask: Tensor
) -> dict[str, Tensor]:
    """[B, T, D] of each of `layers`: "c", "z", "q", or the number of a hidden state; the encoder is asked once."""
    numbered = [layer for layer in layers if layer not in LAYERS]
    output = encoder(input_values, attention_mask=attention_mask, output_hidden_states=bool(numbered))
    found = {}
    for layer in layers:
        if layer in LAYERS:
            found[layer] = getattr(output, LAYERS[layer], None)
            if found[layer] is None:
                raise ValueError(f"layer: {type(encoder).__name__} has no {layer} ({LAYERS[layer]}).")
        elif layer.isdecimal() and int(layer) < len(output.hidden_states):
            found[layer] = output.hidden_states[int(layer)]
        else:
            raise ValueError(
                f"layer must be c, z, q or a hidden state from 0 to {len(output.hidden_states) - 1} for"
                f" {type(encoder).__name__}, got {layer!r}."
            )
    return found


def model_front_end(
    folder: str,
    layers: Sequence[str],
    device: str,
    random_seed: int | None = None,
    *,
    encoder: nn.Module | None = None,
) -> FrontEnd:
    """The encoder of a model, whatever head it was saved with, or an `encoder` like it."""
    encoder = load_model(folder, random_seed).base_model.to(device) if encoder is None else encoder
    return FrontEnd(
        encode=partial(frames_of, encoder, layers),
        num_frames=encoder.num_frames,
        centers=encoder.frame_centers,
        feature_extractor=transformers.Wav2Vec2FeatureExtractor.from_pretrained(folder),
    )


def baseline_front_end(name: str, device: str) -> FrontEnd:
    """Spectral features: a key of `BASELINES`."""
    module = BASELINES[name]().to(device)
    log_mel = getattr(module, "log_mel", module)
    return FrontEnd(
        encode=lambda input_values, attention_mask: {name: module(input_values, attention_mask)},
        num_frames=module.num_frames,
        centers=lambda total: frame_centers(total, [log_mel.window_samples], [log_mel.hop_samples]),
        feature_extractor=transformers.Wav2Vec2FeatureExtractor(do_normalize=False),
    )
