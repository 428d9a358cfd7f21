"""The network of a model trained on the labels of a probe from random weights: what pre-training is measured against.

Table 1 of van den Oord et al., 2018 (arXiv:1807.03748) calls it supervised: the same architecture and a linear layer,
end to end. How it was trained is not said; here, Adam with CPC's learning rate on whole utterances, without dropout,
masks or noise. The encoder that comes out is then judged as all others are, by a probe of its own.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from .front_ends import FrontEnd, frames_of, load_model, model_front_end
from .probe_tasks import Task, numbered

LEARNING_RATE = 2e-4


def supervised_front_end(
    folder: str, layer: str, *, task: Task, batches: Iterable[dict], classes: list[str], device: str, seed: int
) -> FrontEnd:
    """The encoder of a model of random weights, trained on all of `batches` with a linear layer on `layer`, which
    must not be quantized: nothing learns through codes."""
    encoder = load_model(folder, random_seed=seed).base_model.to(device)
    front_end = model_front_end(folder, [layer], device, encoder=encoder)
    classifier, optimizer = None, None
    for batch in tqdm(batches, desc="supervised", unit="batch", leave=False):
        mask = batch["attention_mask"].to(device)
        frames = frames_of(encoder, [layer], batch["input_values"].to(device), mask)[layer]
        lengths = front_end.num_frames(batch["attention_mask"].sum(dim=-1)).tolist()
        clips = [
            task.label({layer: frames[row, :n]}, front_end.seconds(n), batch, row) for row, n in enumerate(lengths)
        ]
        if classifier is None:  # the first batch says how wide the layer is
            classifier = nn.Linear(frames.shape[-1], len(classes)).to(device)
            learning = [*(p for p in encoder.parameters() if p.requires_grad), *classifier.parameters()]
            optimizer = torch.optim.Adam(learning, lr=LEARNING_RATE)
        logits = torch.cat([classifier(clip.values[layer][clip.nearest.to(device)]) for clip in clips])
        targets = torch.cat([numbered(clip.labels, classes) for clip in clips]).to(device)
        loss = F.cross_entropy(logits.float(), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return front_end
