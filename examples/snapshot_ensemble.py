"""Compare the checkpoints that a run saved at its cycle ends with the ensemble that averages their probabilities.

    python examples/snapshot_ensemble.py output/trainer --data test.txt      # a causal language model
    python examples/snapshot_ensemble.py output/trainer --data test.jsonl    # a text classifier

Each line of test.txt is a text. Each line of test.jsonl is an object: {"text": "..."}, and for a classifier
{"text": "...", "label": 2}. For other inputs, such as images, call `evaluate` with batches of your own.

All losses come from logits, in the same way; the `eval_loss` of a Trainer may be on another scale.

In this project's measurements the ensemble was mostly worse than the last checkpoint alone (docs/results.md): compare
them on validation data before you use it. The idea is from Huang et al. 2017, Snapshot Ensembles: Train 1, Get M for
Free, https://arxiv.org/abs/1704.00109.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_warmcos import find_cycle_end_checkpoints


def load_model(checkpoint: Path) -> Any:
    """Load the model of a checkpoint; from a checkpoint with an adapter, the base model with the adapter."""
    source, arguments = str(checkpoint), {}
    adapter = checkpoint / "adapter_config.json"
    if adapter.exists():
        source = json.loads(adapter.read_text())["base_model_name_or_path"]
        if not source:
            raise ValueError(
                f"Expected base_model_name_or_path in {adapter}, but it is empty: the base model was only in memory. "
                "Save the base model with save_pretrained, and write its folder there."
            )
    elif not (checkpoint / "config.json").exists():  # saved by Accelerate: the configuration is in the output folder
        source = str(checkpoint.parent)
        config = AutoConfig.from_pretrained(source)
        arguments = {"config": config, "generation_config": GenerationConfig.from_model_config(config)}
    architectures = AutoConfig.from_pretrained(source).architectures or ["no architecture"]
    if not hasattr(transformers, architectures[0]):
        raise ValueError(f"Expected a model class of transformers in {source}/config.json, but got {architectures[0]}")
    return getattr(transformers, architectures[0]).from_pretrained(checkpoint, **arguments).eval()


@torch.no_grad()
def predict(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities, a row of tokens or labels for each prediction, and the right token or label."""
    labels, inputs = batch["labels"], {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, return_dict=True).get("logits")
    shape = None if logits is None else tuple(logits.shape)
    name, config = type(model).__name__, model.config
    causal = name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    one_label = config.problem_type in (None, "single_label_classification") and not labels.is_floating_point()
    if causal and shape == (*labels.shape, config.get_text_config().vocab_size):
        logits, labels = logits[:, :-1], labels[:, 1:]  # each position predicts the next token
    elif causal or not one_label or config.num_labels == 1 or shape != (*labels.shape, config.num_labels):
        raise ValueError(
            "Expected a causal language model, with logits over the vocabulary, or a classifier that gives each input "
            f"one of several labels, with logits over the labels. Got {name} with num_labels={config.num_labels}, "
            f"problem_type={config.problem_type}, {labels.dtype} labels of shape {tuple(labels.shape)} and logits of "
            f"shape {shape}."
        )
    counted = labels != -100  # which marks padding
    return logits[counted].float().log_softmax(-1).cpu(), labels[counted].cpu()


def score(log_probs: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the cross-entropies (in nats), the number of right predictions, and that of all."""
    cross_entropy = torch.nn.functional.nll_loss(log_probs, labels, reduction="sum")
    return torch.stack([cross_entropy, (log_probs.argmax(-1) == labels).sum(), torch.tensor(len(labels))]).double()


def evaluate(checkpoints: Sequence[Path], batches: Sequence[dict[str, Tensor]]) -> dict[str, list[float]]:
    """Return the loss and the accuracy of each checkpoint and, as `"ensemble"`, of the average of probabilities.

    One model is in memory at a time, and one sum of probabilities: 4 bytes for each prediction and token or label.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    longest = max((batch["input_ids"].shape[-1] for batch in batches if "input_ids" in batch), default=0)
    sums: dict[str, Tensor] = {}
    totals: dict[int, Tensor] = {}
    for checkpoint in checkpoints:
        model = load_model(checkpoint).to(device)
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0
        if 0 < positions < longest:
            raise ValueError(f"Expected --max_length <= {positions}, the model's positions, but got {longest} tokens")
        for index, batch in enumerate(batches):
            log_probs, labels = predict(model, {name: value.to(device) for name, value in batch.items()})
            total = torch.logaddexp(totals[index], log_probs) if index in totals else log_probs
            totals[index] = total
            sums[str(checkpoint)] = sums.get(str(checkpoint), 0) + score(log_probs, labels)
            if checkpoint == checkpoints[-1]:
                sums["ensemble"] = sums.get("ensemble", 0) + score(total - math.log(len(checkpoints)), labels)
        del model  # before the next one is loaded
    return {name: (of[:2] / of[2]).tolist() for name, of in sums.items()}


def text_batches(path: Path, tokenizer: Any, batch_size: int, max_length: int) -> list[dict[str, Tensor]]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"Expected a text in each line of {path}, but it is empty")
    rows = [json.loads(line) if path.suffix == ".jsonl" else {"text": line} for line in lines]
    batches = []
    for start in range(0, len(rows), batch_size):
        some = rows[start : start + batch_size]
        texts = [row["text"] for row in some]
        batch = dict(tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt"))
        padding = batch["attention_mask"] == 0
        labels = [row["label"] for row in some if "label" in row]
        batch["labels"] = torch.tensor(labels) if labels else batch["input_ids"].masked_fill(padding, -100)
        batches.append(batch)
    return batches


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="the output folder of the run")
    parser.add_argument("--data", type=Path, required=True, help="a file with a text or a JSON object in each line")
    parser.add_argument("--last", type=int, default=0, help="take this many checkpoints, the last ones (default: all)")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--max_length", type=int, default=128, help="tokens of each text")
    args = parser.parse_args(arguments)
    for name, minimum in {"last": 0, "batch_size": 1, "max_length": 2}.items():
        if getattr(args, name) < minimum:
            parser.error(f"Expected --{name} >= {minimum}, but got {getattr(args, name)}")
    try:
        checkpoints = find_cycle_end_checkpoints(args.output_dir)[-args.last :]
        tokenizer = AutoTokenizer.from_pretrained(checkpoints[-1])
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        results = evaluate(checkpoints, text_batches(args.data, tokenizer, args.batch_size, args.max_length))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    for name, (loss, accuracy) in results.items():
        print(f"loss {loss:.4f}, accuracy {accuracy:.4f}: {name}")


if __name__ == "__main__":
    main()
