"""What is said in a WAV file, and when, from an exported folder, with numpy and onnxruntime alone.

python transcribe_onnx.py FOLDER clip.wav [model.int8.onnx]
"""

import json
import sys
import wave
from pathlib import Path

import numpy as np
import onnxruntime

folder, clip, *model = sys.argv[1:]
about = json.loads(Path(folder, "export.json").read_text())
with wave.open(clip) as file:
    if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (about["sampling_rate"], 1, 2):
        sys.exit(f"{clip}: one channel of 16 bits at {about['sampling_rate']} Hz is needed; sox or ffmpeg make it so.")
    samples = np.frombuffer(file.readframes(file.getnframes()), np.int16) / np.float32(32768)
if about["do_normalize"]:
    samples = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
session = onnxruntime.InferenceSession(Path(folder, *(model or ["model.onnx"])))
inputs = {"input_values": samples[None], "attention_mask": np.ones((1, len(samples)), np.int64)}
best = session.run(["logits"], inputs)[0][0].argmax(axis=-1)
begins = [frame for frame in np.flatnonzero(np.diff(best, prepend=-1)) if best[frame] != about["blank"]]
heard = [about["symbols"][best[frame]] for frame in begins]
between = about["word_delimiter"]
print("".join(heard).replace(between, " ").strip() if between else " ".join(heard))
for symbol, frame in zip(heard, begins, strict=True):
    print(f"{about['first_seconds'] + frame * about['hop_seconds']:8.3f} s  {symbol}")
