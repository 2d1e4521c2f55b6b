"""Ensembles of the models that one training run leaves at the ends of its cycles."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_warmcos.schedule import CosineRestartSchedule


def find_cycle_end_checkpoints(output_dir: str | PathLike[str]) -> list[Path]:
    """Return the checkpoints of a training run that were saved at the ends of its cycles, in their order.

    These are the folders in `output_dir` with a number at the end of their name (`checkpoint-500`, `cycle_3`) in which
    the saved scheduler (`scheduler.pt` of a Trainer, `scheduler.bin` of Accelerate) is one of this project, at the end
    of a cycle. Checkpoints of other steps are left out, and so are those whose writing was cut off.

    Args:
        output_dir (`str` or `PathLike`): The output folder of the run.

    Returns:
        `list[Path]`: The folders, by their step.

    Raises:
        ValueError: If there are none.
    """
    steps = {
        folder: _cycle_end(folder) for folder in Path(output_dir).iterdir() if re.fullmatch(r".+[-_]\d+", folder.name)
    }
    found = sorted((step, folder) for folder, step in steps.items() if step is not None)
    if not found:
        raise ValueError(
            f"Expected checkpoints of cycle ends in output_dir={str(output_dir)!r}, but found none among "
            f"{len(steps)} checkpoints. CycleEndCallback saves them. Checkpoints without the state of their scheduler "
            "(save_only_model=True) have to be listed."
        )
    return [folder for _, folder in found]


def _cycle_end(folder: Path) -> int | None:
    """The step of the checkpoint, if a cycle ended there."""
    for name in ("scheduler.pt", "scheduler.bin"):
        try:
            state = torch.load(folder / name, weights_only=True)
            saved = state["schedule"]
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError):
            continue
        schedule = CosineRestartSchedule(**{field.name: saved[field.name] for field in fields(CosineRestartSchedule)})
        step = state["last_epoch"]
        if step > 0 and schedule.cycle_at(step - 1).end == step:
            return step
    return None


class _Averaging(NamedTuple):
    """How the logits of several models are averaged: `leave(add(add(enter(z_1), enter(z_2)), …), M)` are logits again.

    One model after the other, so that no more than a total is kept, whatever the number of models.
    """

    enter: Callable[[Tensor], Tensor]
    add: Callable[[Tensor, Tensor], Tensor]
    leave: Callable[[Tensor, int], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]


_CLASSIFICATION = _Averaging(
    enter=lambda logits: F.log_softmax(logits, dim=-1),
    add=torch.logaddexp,
    leave=lambda total, num_models: total - math.log(num_models),
    loss=lambda logits, labels: F.cross_entropy(logits.flatten(0, -2), labels.flatten()),
)
# The probabilities of a label and of its absence; their number cancels out in the log-odds.
_MULTI_LABEL_CLASSIFICATION = _Averaging(
    enter=lambda logits: torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)]),
    add=torch.logaddexp,
    leave=lambda total, num_models: total[0] - total[1],
    loss=lambda logits, labels: F.binary_cross_entropy_with_logits(logits, labels.float()),
)
_REGRESSION = _Averaging(
    enter=lambda logits: logits,
    add=torch.add,
    leave=lambda total, num_models: total / num_models,
    loss=lambda logits, labels: F.mse_loss(logits.flatten(), labels.flatten().float()),
)


class SnapshotEnsemble(nn.Module):
    r"""The models at the ends of a run's cycles as one model, which predicts with the average of their probabilities.

    For the logits :math:`z_m` of M models:

    .. math::
        logits = \log \frac{1}{M} \sum_{m=1}^{M} \mathrm{softmax}(z_m)

    These are log-probabilities, in float32: their cross entropy with the labels is the loss of the ensemble. Where
    `config.problem_type` is `"multi_label_classification"`, the probabilities are sigmoids and the logits log-odds;
    logits of a single value are a regression, and averaged as they are.

    Predictions are averaged, not weights. The models of different cycles lie in different basins, and an average of
    their weights lies between these, where the loss is known to be high.

    An ensemble is called as its models are, and goes into a `Trainer` for `evaluate` and `predict` (with
    `remove_unused_columns=False`: it takes any columns). It has no gradients.

    Args:
        model_class (`type`): An `AutoModelFor…` class or a model class, of models that return logits.
        checkpoints (`str`, `PathLike` or a sequence of these): The folders of the checkpoints, or the output folder of
            a run, whose cycle ends [`find_cycle_end_checkpoints`] finds. A checkpoint without a configuration, as
            `accelerator.save_state` writes them, takes that of the folder that it is in.
        one_at_a_time (`bool`, *optional*, defaults to `False`): Keep no model in memory. Each call loads one after the
            other, onto the device of the inputs. It takes as long as that takes: give it large batches.
        **kwargs: Passed on to `model_class.from_pretrained`, such as `dtype`.

    Attributes:
        checkpoints (`list[Path]`): The folders of the checkpoints.
        config (`PretrainedConfig`): The configuration of the first model.

    Raises:
        ValueError: If there are no checkpoints.
        OSError: If a folder has no model, as from `from_pretrained`.

    Example:

    ```python
    >>> import tempfile, torch
    >>> from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
    >>> folders = [tempfile.mkdtemp() for _ in range(3)]
    >>> for folder in folders:
    ...     model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    ...     model.save_pretrained(folder)
    >>> ensemble = SnapshotEnsemble(AutoModelForCausalLM, folders)
    >>> probabilities = ensemble(input_ids=torch.tensor([[1, 2, 3]])).logits.exp()
    >>> probabilities.shape
    torch.Size([1, 3, 8])
    >>> torch.allclose(probabilities.sum(-1), torch.ones(1, 3))
    True

    ```

    Source: Huang et al. 2017, Snapshot Ensembles: Train 1, Get M for Free, https://arxiv.org/abs/1704.00109. The
    paper averages the last m models of a run: `find_cycle_end_checkpoints(output_dir)[-m:]`.
    """

    # The loss is a mean over the batch at hand; a Trainer is not to pass the number of items in several batches.
    accepts_loss_kwargs = False

    def __init__(
        self,
        model_class: Any,
        checkpoints: str | PathLike[str] | Sequence[str | PathLike[str]],
        *,
        one_at_a_time: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if isinstance(checkpoints, (str, PathLike)):
            checkpoints = find_cycle_end_checkpoints(checkpoints)
        if not checkpoints:
            raise ValueError(f"Expected checkpoints to have at least one folder, but got {checkpoints!r}")
        self.model_class, self.kwargs = model_class, kwargs
        self.checkpoints = [Path(checkpoint) for checkpoint in checkpoints]
        first, *others = self.checkpoints
        model = self._load(first)
        self.config: PretrainedConfig = model.config
        # Such models compare the logits of a position with the label of the next one.
        self._predicts_next_token = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        self.models = nn.ModuleList([] if one_at_a_time else [model, *map(self._load, others)])

    def _load(self, checkpoint: Path) -> PreTrainedModel:
        kwargs = self.kwargs
        if not (checkpoint / "config.json").exists() and not (checkpoint / "adapter_config.json").exists():
            config = AutoConfig.from_pretrained(checkpoint.parent)
            # Without the latter from_pretrained would look for a configuration in the checkpoint all the same.
            kwargs = {"config": config, "generation_config": GenerationConfig.from_model_config(config), **kwargs}
        return self.model_class.from_pretrained(checkpoint, **kwargs)

    def _outputs(self, inputs: dict[str, Any]) -> Iterator[ModelOutput]:
        """The output of each model; without a name for the model, so that it is gone before the next one is loaded."""
        if self.models:
            yield from (model(**inputs) for model in self.models)
            return
        device = next((value.device for value in inputs.values() if isinstance(value, Tensor)), torch.device("cpu"))
        for checkpoint in self.checkpoints:
            yield self._load(checkpoint).to(device)(**inputs)  # type: ignore[arg-type]

    @torch.no_grad()
    def forward(self, labels: Tensor | None = None, **inputs: Any) -> ModelOutput:
        """Return the log of the averaged probabilities.

        Args:
            labels (`torch.Tensor`, *optional*): What the models take as labels.
            **inputs: What else the models take.

        Returns:
            `ModelOutput`: `logits` in the shape that the models give them, in float32; likewise each other output of
            theirs that ends in `_logits`, such as `start_logits`. With `labels` also `loss`, a mean.

        Raises:
            ValueError: If the models return no logits.
        """
        if labels is not None:
            inputs["labels"] = labels
        totals: dict[str, Tensor] = {}
        averagings: dict[str, _Averaging] = {}
        for output in self._outputs(inputs):
            for name, logits in output.items():
                if name != "logits" and not name.endswith("_logits"):
                    continue
                averaging = averagings.setdefault(name, self._averaging_of(name, logits))
                entered = averaging.enter(logits.float())
                totals[name] = averaging.add(totals[name], entered) if name in totals else entered
        if not totals:
            raise ValueError(f"Expected models that return logits, but got a model that returns {', '.join(output)}")
        averages = {name: averagings[name].leave(total, len(self.checkpoints)) for name, total in totals.items()}
        if labels is not None and "logits" in averages:
            logits = averages["logits"]
            if self._predicts_next_token:
                logits, labels = logits[..., :-1, :], labels[..., 1:]
            averages = {"loss": averagings["logits"].loss(logits, labels), **averages}
        return ModelOutput(averages)

    def _averaging_of(self, name: str, logits: Tensor) -> _Averaging:
        if name == "logits" and getattr(self.config, "problem_type", None) == "multi_label_classification":
            return _MULTI_LABEL_CLASSIFICATION
        if name == "logits" and logits.shape[-1] == 1:
            return _REGRESSION
        return _CLASSIFICATION
