"""Transformers' speech recognition pipeline without its ffmpeg, torchaudio and torchcodec: soundfile and soxr instead.

Folders of CTC models carry it along, so that `pipeline("automatic-speech-recognition")` finds it there.

Shapes: S samples of a waveform.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutomaticSpeechRecognitionPipeline

from .audio_reading import Recording, read_audio, resample
from .frame_places import FramePlaces, blank_padding, min_num_samples
from .mono import as_mono
from .norm_statistics import NormStatistics, check_norm_statistics, fixed_norms, measure_norms
from .windows import NormalizedWaveform, windows_of


class SpeechRecognitionPipeline(AutomaticSpeechRecognitionPipeline):
    """
    `pipeline("automatic-speech-recognition")` for every kind of audio, with nothing to install beside libsndfile:

        pipeline("automatic-speech-recognition", model=..., pipeline_class=SpeechRecognitionPipeline)

    Each input is one of
    - the name (`str`, `Path`) or the `bytes` of an audio file at any sampling rate, with any number of channels; a
      URL is left to the parent class, which wants ffmpeg for it;
    - a waveform at the model's sampling rate, as array or tensor: [S], or two-dimensional with up to 8 channels,
      which are the shorter axis; floats with a full scale of 1, or signed integers with that of their type;
    - a `dict` with such a waveform of any sampling rate under `raw` or `array`, its `sampling_rate` in Hz and, if
      wanted, `stride` (left, right) in its samples; or with `bytes` or `path`, as `datasets` gives undecoded audio.
      Other keys come back with the result;
    - an `AudioDecoder` of `datasets`;

    or a list or generator of these. Channels are averaged. `chunk_length_s`, `stride_length_s`, `batch_size`,
    `return_timestamps` ("char", "word") and the result are the parent's; with `chunk_length_s` files are read chunk by
    chunk, so that memory doesn't grow with them. What is normalised over time is so over all of the input then, as it
    is without chunks: the waveform, and what norms over time hear. `norm_statistics="chunk"` leaves those to each
    chunk; so does None, the default, but for models of this package with a single such norm, which need
    `num_workers=0`. Of URLs all of it is left to each chunk, and they share no batch with what is measured.

    Raises:
        ValueError: no audio in the input, a shape or type not listed here, values that are NaN or infinite, fewer
            samples than one frame of the model needs, or another `norm_statistics`.
    """

    def _sanitize_parameters(self, norm_statistics: NormStatistics | None = None, **kwargs):
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        if norm_statistics is not None:
            preprocess["norm_statistics"] = check_norm_statistics(norm_statistics, self.model)
        return preprocess, forward, postprocess

    def preprocess(
        self,
        inputs: Any,
        chunk_length_s: float = 0,
        stride_length_s: float | tuple[float, float] | None = None,
        norm_statistics: NormStatistics | None = None,
    ) -> Iterator[dict[str, Any]]:
        is_url = isinstance(inputs, str) and inputs.startswith(("http://", "https://"))
        if not is_url:
            inputs = self._read(inputs, Recording if chunk_length_s and self.places is not None else read_audio)
        if chunk_length_s and not is_url and self.places is not None:
            yield from self._chunks(inputs, chunk_length_s, stride_length_s, norm_statistics)
            return
        for item in super().preprocess(inputs, chunk_length_s=chunk_length_s, stride_length_s=stride_length_s):
            if "stride" in item and item["stride"][0] < self.min_num_samples:
                raise ValueError(
                    f"chunk_length_s={chunk_length_s} and stride_length_s={stride_length_s} leave {item['stride'][0]}"
                    f" samples for a chunk, the model needs at least {self.min_num_samples}: choose longer ones."
                )
            yield item

    def _chunks(
        self,
        inputs: dict[str, Any],
        chunk_length_s: float,
        stride_length_s: float | tuple[float, float] | None,
        norm_statistics: NormStatistics | None,
    ) -> Iterator[dict[str, Any]]:
        """Of a waveform or a `Recording` what the parent makes of a waveform, normalised as one."""
        others = {key: value for key, value in inputs.items() if key not in ("raw", "sampling_rate", "stride")}
        if stride_length_s is None:
            stride_length_s = chunk_length_s / 6
        if isinstance(stride_length_s, int | float):
            stride_length_s = (stride_length_s, stride_length_s)
        frames_per_second = self.feature_extractor.sampling_rate / self._align_to
        length, left, right = (round(seconds * frames_per_second) for seconds in (chunk_length_s, *stride_length_s))
        if length <= left + right or min(left, right) < 0:
            raise ValueError(
                f"chunk_length_s={chunk_length_s} leaves nothing between the strides on its sides,"
                f" stride_length_s={stride_length_s}."
            )
        total = int(self.model._get_feat_extract_output_lengths(len(inputs["raw"])))
        windows = windows_of(self.places, total, length=length, left=left, right=right)
        extractor = copy.copy(self.feature_extractor)
        waveform = NormalizedWaveform(inputs["raw"], extractor.do_normalize)
        extractor.do_normalize = False
        if check_norm_statistics(norm_statistics, self.model) == "recording":
            if torch.utils.data.get_worker_info() is not None:
                raise ValueError(
                    'num_workers must be 0 with norm_statistics="recording", which asks the model, and may be 1 with'
                    ' norm_statistics="chunk".'
                )
            others["norm_statistics"] = measure_norms(self.model, self.model, waveform, windows, self.places).cpu()
        for window in windows:
            samples = waveform[window.start : window.stop]
            heard = extractor(
                samples, sampling_rate=inputs["sampling_rate"], return_tensors="pt", return_attention_mask=True
            ).to(dtype=self.dtype)
            # of as many samples as the parent finds the frames back with
            sides = (window.num_frames, window.begin, window.num_frames - window.end)
            stride = tuple(frames * self._align_to for frames in sides)
            yield {"is_last": window is windows[-1], "stride": stride, **heard, **others}

    def _forward(self, model_inputs: dict[str, Any], **kwargs) -> dict[str, Any]:
        """Chunks of one recording together; those of several one by one, since each has statistics of its own."""
        statistics = model_inputs.pop("norm_statistics", None)
        if statistics is None or len(statistics) == 1 or (statistics == statistics[:1]).all():
            with fixed_norms(self.model, None if statistics is None else statistics[:1]):
                return self._hear(model_inputs, **kwargs)
        rows = []
        for i in range(len(statistics)):
            with fixed_norms(self.model, statistics[i : i + 1]):
                rows.append(self._hear({name: value[i : i + 1] for name, value in model_inputs.items()}, **kwargs))
        return {
            name: torch.cat([row[name] for row in rows])
            if isinstance(rows[0][name], torch.Tensor)
            else [value for row in rows for value in row[name]]
            for name in rows[0]
        }

    def _hear(self, model_inputs: dict[str, Any], **kwargs) -> dict[str, Any]:
        attention_mask = model_inputs.get("attention_mask")
        outputs = super()._forward(model_inputs, **kwargs)
        if self.type == "ctc" and attention_mask is not None:
            outputs["tokens"] = blank_padding(
                outputs["tokens"], attention_mask, self.model, self.tokenizer.pad_token_id
            )
        return outputs

    def postprocess(self, model_outputs, **kwargs) -> dict[str, Any]:
        """The parent's result, whose timestamps are multiples of the hop, with each frame where its convolutions look:
        it lasts from half a hop before the middle of what they see to half a hop behind."""
        result = super().postprocess(model_outputs, **kwargs)
        if self.type in ("ctc", "ctc_with_lm"):
            for chunk in result.get("chunks", []):
                # as plain numbers, in microseconds, so that they can be read when they are printed
                times = (round(float(time) + self.delay_seconds, 6) for time in chunk["timestamp"])
                chunk["timestamp"] = tuple(max(0.0, time) for time in times)
        return result

    @cached_property
    def places(self) -> FramePlaces | None:
        """Where the frames of the model are, if it tells."""
        return FramePlaces.of(self.model) if self.type in ("ctc", "ctc_with_lm") else None

    @property
    def _align_to(self) -> int:
        """Samples from a frame to the next, an adapter's strides among them, which the parent leaves out."""
        return super()._align_to if self.places is None else self.places.hop

    @property
    def delay_seconds(self) -> float:
        """How much later a frame is than its number times the hop; 0 where the model doesn't tell where frames are."""
        if self.places is None:
            return 0.0
        return (self.places.first - self.places.hop / 2) / self.feature_extractor.sampling_rate

    @cached_property
    def min_num_samples(self) -> int:
        return min_num_samples(self.model)

    def _read(self, inputs: Any, read: Callable[[Any, int], Any] = read_audio) -> dict[str, Any]:
        """Any input but a URL as the dict that the parent needs no other library for: `raw` [S], `sampling_rate`.

        `read` makes `raw` of files.
        """
        sampling_rate = self.feature_extractor.sampling_rate
        if isinstance(inputs, str | Path | bytes):
            inputs = {"bytes": inputs} if isinstance(inputs, bytes) else {"path": str(inputs)}
        elif isinstance(inputs, np.ndarray | torch.Tensor):
            inputs = {"raw": inputs, "sampling_rate": sampling_rate}
        elif hasattr(inputs, "get_all_samples"):  # torchcodec's AudioDecoder, which `datasets` extends
            samples = inputs.get_all_samples()
            inputs = {"raw": samples.data, "sampling_rate": samples.sample_rate}
        elif not isinstance(inputs, Mapping):
            raise ValueError(
                f"inputs is a {type(inputs).__name__}; accepted are a path, the bytes of a file, an array or tensor,"
                " a dict of one of these, and an AudioDecoder."
            )

        name = inputs.get("path") or "inputs"
        waveform = inputs.get("array") if inputs.get("raw") is None else inputs["raw"]
        stride = inputs.get("stride")
        if waveform is not None:
            orig_sampling_rate = inputs.get("sampling_rate")
            if not isinstance(orig_sampling_rate, int | float | np.number) or orig_sampling_rate <= 0:
                raise ValueError(f"{name} has sampling_rate={orig_sampling_rate!r}; accepted is a positive one in Hz.")
            waveform = as_mono(waveform, name)
            self._check_length(waveform, orig_sampling_rate, name)
            if num_bad := int(np.count_nonzero(~np.isfinite(waveform))):
                raise ValueError(f"{name} has {num_bad} NaN or infinite samples among its {len(waveform)}.")
            waveform = resample(waveform, orig_sampling_rate=orig_sampling_rate, sampling_rate=sampling_rate)
            stride = stride and tuple(round(side * sampling_rate / orig_sampling_rate) for side in stride)
        elif inputs.get("bytes") is None and inputs.get("path") is None:
            raise ValueError(f"inputs is a dict of {list(inputs)}; it needs one of raw, array, bytes and path.")
        elif stride is not None:
            raise ValueError(f"{name} has stride={stride}; accepted is one beside raw or array only.")
        else:
            waveform = read({"bytes": inputs.get("bytes"), "path": inputs.get("path")}, sampling_rate)
        self._check_length(waveform, sampling_rate, name)

        consumed = ("raw", "array", "bytes", "path", "sampling_rate", "stride")
        others = {key: value for key, value in inputs.items() if key not in consumed}
        return {**others, "raw": waveform, "sampling_rate": sampling_rate, "stride": stride}

    def _check_length(self, waveform: np.ndarray | Recording, sampling_rate: float, name: str) -> None:
        """Refuse a `waveform` [S] at `sampling_rate` Hz of less than a frame."""
        min_num_samples = math.ceil(self.min_num_samples * sampling_rate / self.feature_extractor.sampling_rate)
        if len(waveform) < min_num_samples:
            raise ValueError(
                f"{name} has {len(waveform)} samples at {sampling_rate} Hz,"
                f" the model needs at least {min_num_samples} of them."
            )
