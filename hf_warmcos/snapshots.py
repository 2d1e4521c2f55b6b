"""Ensembles of the models that one training run leaves at the ends of its cycles."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from hf_warmcos.checkpoints import find_cycle_end_checkpoints, find_torn_file


class _Averaging(NamedTuple):
    """How the logits of several models are averaged: `leave(add(add(enter(z_1), enter(z_2)), …), M)` are logits again.

    One model after the other, so that no more than a total is kept, whatever the number of models.
    """

    enter: Callable[[Tensor], Tensor]
    add: Callable[[Tensor, Tensor], Tensor]
    leave: Callable[[Tensor, int], Tensor]


def one_of_classes(dim: int) -> _Averaging:
    return _Averaging(
        enter=lambda logits: F.log_softmax(logits, dim=dim),
        add=torch.logaddexp,
        leave=lambda total, num_models: total - math.log(num_models),
    )


# The probabilities of a label and of its absence; their number cancels out in the log-odds.
_YES_OR_NO = _Averaging(
    enter=lambda logits: torch.stack([F.logsigmoid(logits), F.logsigmoid(-logits)]),
    add=torch.logaddexp,
    leave=lambda total, num_models: total[0] - total[1],
)
_VALUES = _Averaging(
    enter=lambda logits: logits,
    add=torch.add,
    leave=lambda total, num_models: total / num_models,
)


def _by_last_dim(config: PretrainedConfig) -> _Averaging:
    return one_of_classes(-1)


def _by_problem_type(config: PretrainedConfig) -> _Averaging:
    problem_type = config.problem_type or ("regression" if config.num_labels == 1 else "single_label_classification")
    return {
        "regression": _VALUES,
        "single_label_classification": one_of_classes(-1),
        "multi_label_classification": _YES_OR_NO,
    }[problem_type]


def _by_pixel(config: PretrainedConfig) -> _Averaging:
    return _YES_OR_NO if config.num_labels == 1 else one_of_classes(1)


# What the models of a task return, by the names that transformers gives the tasks: `BertForTokenClassification`.
_TASKS: dict[str, Callable[[PretrainedConfig], _Averaging]] = {
    "CausalLM": _by_last_dim,
    "MaskedLM": _by_last_dim,
    "TokenClassification": _by_last_dim,
    "MultipleChoice": _by_last_dim,
    "NextSentencePrediction": _by_last_dim,
    "QuestionAnswering": _by_last_dim,
    "CTC": _by_last_dim,
    "SequenceClassification": _by_problem_type,
    "ImageClassification": _by_problem_type,
    "VideoClassification": _by_problem_type,
    "AudioClassification": _by_problem_type,
    "SemanticSegmentation": _by_pixel,
}


def _task_of(model: PreTrainedModel) -> str | None:
    # Whatever generates text predicts tokens, with or without an encoder, from text, pictures or sound.
    if model.can_generate():
        return "CausalLM"
    names = [base.__name__ for base in type(model).__mro__]
    return next((task for name in names for task in _TASKS if f"For{task}" in name), None)


# What a Trainer asks a model to find out how it computes its loss.
_LOOKED_UP = ("accepts_loss_kwargs", "loss_type")


class SnapshotEnsemble(nn.Module):
    r"""The models at the ends of a run's cycles as one model, which predicts with the average of their probabilities.

    For the logits :math:`z_m` of M models:

    .. math::
        logits = \log \frac{1}{M} \sum_{m=1}^{M} \mathrm{softmax}(z_m)

    These are log-probabilities, in float32, over what the models choose from: tokens, classes (of a pixel, too),
    choices, positions. An ensemble of one has the logits of its model, but for a constant that the softmax takes out.
    Where `config.problem_type` is `"multi_label_classification"` the probabilities are sigmoids and the logits
    log-odds; the values of a regression are averaged as they are. A problem type that the configuration leaves open
    follows from the number and the type of the labels, as in transformers.

    The loss is what the models' own `forward` makes of the averaged logits: it runs once more, in the last model, with
    these in the place of the model's own. So it is the loss of that class, with its shift of the labels, its
    interpolation or its class weights.

    Predictions are averaged, not weights: where an average of cycle ends beat the last checkpoint in this project's
    measurements (docs/when-to-use.md), that of predictions gained at least as much.

    An ensemble is called as its models are, by position or by name, and goes into a `Trainer` for `evaluate` and
    `predict`. It has no gradients, and does not generate.

    Args:
        model_class (`type`): An `AutoModelFor…` class or a model class: language models (causal, masked, sequence to
            sequence, of text, pictures or sound), classification (of sequences, tokens, pictures, videos, sound),
            multiple choice, question answering, semantic segmentation, CTC; with or without adapters
            (`AutoPeftModelFor…`).
        checkpoints (`str`, `PathLike` or a sequence of these): The folders of the checkpoints, or the output folder of
            a run, whose cycle ends [`find_cycle_end_checkpoints`] finds. A checkpoint without a configuration, as
            `accelerator.save_state` writes them, takes that of the folder that it is in.
        one_at_a_time (`bool`, *optional*, defaults to `False`): Keep no model in memory. Each call loads one after the
            other, onto the device of the inputs. It takes as long as that takes: give it large batches.
        task (`str`, *optional*): What the models do, where the names of their classes do not say it: the part after
            `For` in the names of transformers, such as `"SequenceClassification"`.
        **kwargs: Passed on to `model_class.from_pretrained`, such as `dtype`.

    Attributes:
        checkpoints (`list[Path]`): The folders of the checkpoints.
        task (`str`): What the models do.
        config, generation_config, dtype: As the first model has them.

    Raises:
        ValueError: If there are no checkpoints, or if it is not known how the outputs of the models are averaged.
        OSError: If a folder has no model, as from `from_pretrained`, or if a file of it was not written to its end.

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

    _made_for: ClassVar[tuple[Any, ...]]

    def __init__(
        self,
        model_class: Any,
        checkpoints: str | PathLike[str] | Sequence[str | PathLike[str]],
        *,
        one_at_a_time: bool = False,
        task: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        if isinstance(checkpoints, (str, PathLike)):
            checkpoints = find_cycle_end_checkpoints(checkpoints)
        if not checkpoints:
            raise ValueError(f"Expected checkpoints to have at least one folder, but got {checkpoints!r}")
        self.model_class, self.kwargs = model_class, kwargs
        self.checkpoints = [Path(checkpoint) for checkpoint in checkpoints]
        for checkpoint in self.checkpoints:
            _check_files(checkpoint)
        model: Any = self._load(self.checkpoints[0])
        base_model = model.get_base_model() if hasattr(model, "get_base_model") else model  # that with the adapters
        self.task = task or _task_of(base_model) or "unknown"
        if self.task not in _TASKS:
            raise _unknown(type(base_model).__name__, "others" if task is None else f"those of task={task!r}")
        self.config: PretrainedConfig = model.config
        self.generation_config: GenerationConfig | None = getattr(model, "generation_config", None)
        self.dtype: torch.dtype = model.dtype
        others = [] if one_at_a_time else [self._load(checkpoint) for checkpoint in self.checkpoints[1:]]
        self.models = nn.ModuleList([] if one_at_a_time else [model, *others])
        looked_up = {name: getattr(base_model, name) for name in _LOOKED_UP if hasattr(base_model, name)}
        self.__class__ = _ensemble_class(type(self), type(base_model), looked_up)
        self.eval()

    def _load(self, checkpoint: Path) -> PreTrainedModel:
        kwargs = self.kwargs
        if not _has_config(checkpoint):
            config = AutoConfig.from_pretrained(checkpoint.parent)
            # Without the latter from_pretrained would look for a configuration in the checkpoint all the same.
            kwargs = {"config": config, "generation_config": GenerationConfig.from_model_config(config), **kwargs}
        model = self.model_class.from_pretrained(checkpoint, **kwargs)
        self._returns_dict = model.config.return_dict
        model.config.return_dict = True
        return model

    def _model(self, index: int, inputs: dict[str, Any]) -> PreTrainedModel:
        if self.models:
            return self.models[index]  # type: ignore[return-value]
        device = next((value.device for value in inputs.values() if isinstance(value, Tensor)), torch.device("cpu"))
        return self._load(self.checkpoints[index]).to(device)  # type: ignore[arg-type]

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> ModelOutput | tuple[Any, ...]:
        """Return the log of the averaged probabilities.

        Args:
            *args, **kwargs: What the models take.

        Returns:
            `ModelOutput`: `logits` (of question answering `start_logits` and `end_logits`) in the shape that the models
            give them, in float32; with labels also `loss`. A tuple with `return_dict=False`.

        Raises:
            ValueError: If the models return no logits, if their shapes differ, or if their loss depends on more than
                these.
        """
        return_dict = kwargs.pop("return_dict", None)
        inputs = self._by_name(args, kwargs)
        if inputs.get("past_key_values") is not None:
            raise ValueError("Expected no past_key_values for an ensemble, since they are those of one model")
        self._settle_problem_type(inputs.get("labels"))
        averaging = _TASKS[self.task](self.config)
        totals: dict[str, Tensor] = {}
        for index, checkpoint in enumerate(self.checkpoints):
            model: Any = None  # so that one model is gone before the next one is loaded
            model = self._model(index, inputs)
            with _Recording() as recording:
                output = model(**inputs)
            logits = self._logits_of(output)
            for name, value in logits.items():
                entered = averaging.enter(value.float())
                if index and (name not in totals or totals[name].shape != entered.shape):
                    raise ValueError(
                        f"Expected {name} of one shape, but the model in {checkpoint} gives another one, "
                        f"{[*value.shape]}, than the model in {self.checkpoints[0]}"
                    )
                totals[name] = averaging.add(totals[name], entered) if index else entered
        averages = {name: averaging.leave(total, len(self.checkpoints)) for name, total in totals.items()}
        loss = {}
        if output.get("loss") is not None:
            loss["loss"] = self._loss(model, inputs, recording, logits, averages)
        result = ModelOutput({**loss, **averages})
        return result if (self._returns_dict if return_dict is None else return_dict) else result.to_tuple()

    def _by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        signature = inspect.signature(self.forward)
        signature.bind(*args, **kwargs)  # a TypeError where the models would raise it
        return {**dict(zip(signature.parameters, args)), **kwargs}

    def _settle_problem_type(self, labels: Any) -> None:
        """Where nothing else says it, the type of the labels says how many an example has, as in transformers."""
        if (
            _TASKS[self.task] is _by_problem_type
            and self.config.problem_type is None
            and isinstance(labels, Tensor)
            and self.config.num_labels != 1
        ):
            whole = labels.dtype in (torch.long, torch.int)
            self.config.problem_type = "single_label_classification" if whole else "multi_label_classification"

    def _logits_of(self, output: Any) -> dict[str, Tensor]:
        if not isinstance(output, dict):
            raise self._unknown(f"a {type(output).__name__}")
        names = ("start_logits", "end_logits") if self.task == "QuestionAnswering" else ("logits",)
        if not all(isinstance(output.get(name), Tensor) for name in names):
            raise self._unknown(f"{', '.join(output)}, and not {' and '.join(names)}")
        logits = {name: output[name] for name in names}
        if self.task == "SemanticSegmentation" and logits["logits"].shape[1] != self.config.num_labels:
            raise self._unknown(f"logits of the shape {[*logits['logits'].shape]} for {self.config.num_labels} labels")
        return logits

    def _loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Any],
        recording: _Recording,
        logits: dict[str, Tensor],
        averages: dict[str, Tensor],
    ) -> Tensor:
        """What the model's own forward computes where its logits are the averages."""
        own_loss = f"{self._get_name()} computes its loss in a way in which averaged logits cannot take part"
        advice = "Call the ensemble without labels, and compute the loss from its logits."
        for _ in range(2):
            with _Replacing({recording.calls_of(logits[name]): averages[name] for name in averages}) as replacing:
                output = model(**inputs)
            if all(torch.equal(output[name].nan_to_num(), averages[name].nan_to_num()) for name in averages):
                break
            # The first call of a model may be another one than those that follow, if it settles something (BigBird, its
            # kind of attention).
            with _Recording() as recording:
                logits = self._logits_of(model(**inputs))
        else:
            raise ValueError(f"{own_loss}: its logits are not what a function of torch returns. {advice}")
        if output["loss"] in replacing.stem_from_parameters:
            raise ValueError(f"{own_loss}: it depends on more than the {' and '.join(averages)}. {advice}")
        return output["loss"]

    def _unknown(self, what: str) -> ValueError:
        return _unknown(self._get_name(), what)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            raise AttributeError(
                f"A SnapshotEnsemble is several models, and has no {name!r} as one of them may have. A plain "
                "transformers.Trainer evaluates it; trainers that reach into their model take one of ensemble.models."
            ) from error

    def generate(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise an error: an ensemble predicts, and does not generate."""
        raise NotImplementedError(
            "A SnapshotEnsemble does not generate. Use one of its models, as in ensemble.models[-1].generate(...), or "
            "call the ensemble for the probabilities of the next token."
        )

    def can_generate(self) -> bool:
        return False

    def train(self, mode: bool = True) -> SnapshotEnsemble:
        """Stay as it is: an ensemble only predicts."""
        return super().train(False)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class is made at run time, so that no module has it.
        return _make_again, type(self)._made_for, self.__dict__


def _ensemble_class(
    ensemble_class: type[SnapshotEnsemble], model_type: type[nn.Module], looked_up: dict[str, Any]
) -> type[SnapshotEnsemble]:
    """A class that a Trainer takes for `model_type`: by its signature, its name and the attributes that it looks up."""

    def forward(self: SnapshotEnsemble, *args: Any, **kwargs: Any) -> ModelOutput | tuple[Any, ...]:
        return ensemble_class.forward(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(model_type.forward)  # type: ignore[attr-defined]
    forward.__doc__ = ensemble_class.forward.__doc__
    namespace = {"forward": forward, "_get_name": lambda self: model_type.__name__, **looked_up}
    namespace["_made_for"] = (ensemble_class, model_type, looked_up)
    return type(f"{ensemble_class.__name__}Of{model_type.__name__}", (ensemble_class,), namespace)


def _make_again(*made_for: Any) -> SnapshotEnsemble:
    ensemble_class = _ensemble_class(*made_for)
    return ensemble_class.__new__(ensemble_class)


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").exists() or (folder / "adapter_config.json").exists()


def _check_files(checkpoint: Path) -> None:
    if not checkpoint.is_dir():
        raise OSError(f"Expected the folder of a checkpoint, but there is no {checkpoint}")
    if not _has_config(checkpoint) and not _has_config(checkpoint.parent):
        raise OSError(f"Expected a config.json in {checkpoint} or in the folder that it is in, but found none")
    if (torn_file := find_torn_file(checkpoint)) is not None:
        raise OSError(f"Expected a whole checkpoint, but {torn_file} is missing or was not written to its end")


def _unknown(model_name: str, outputs: str) -> ValueError:
    return ValueError(
        f"Expected models whose outputs can be averaged, but {model_name} gives {outputs}. Known are the tasks "
        f"{', '.join(_TASKS)}, by the names that transformers gives the classes: if it does one of these under another "
        "name, pass task=. Otherwise average the outputs of the models in find_cycle_end_checkpoints(output_dir) as "
        "your task asks for."
    )


# A call of a torch function while a model runs: how many came before, and the function.
_Call = tuple[int, Any]


class _Recording(TorchFunctionMode):
    """Notes which calls of torch's functions returned which tensor."""

    def __init__(self) -> None:
        super().__init__()
        self._indices = itertools.count()
        self._calls = WeakIdKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        index = next(self._indices)
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            # More than one where a function changes or returns its argument: `x.add_(y)`, `x.float()`.
            self._calls.setdefault(result, []).append((index, func))
        return result

    def calls_of(self, tensor: Tensor) -> tuple[_Call, ...]:
        return tuple(self._calls.get(tensor, ()))


class _Replacing(TorchFunctionMode):
    """Gives the calls that a [`_Recording`] noted other results, and notes what stems from parameters all the same."""

    def __init__(self, replacements: dict[tuple[_Call, ...], Tensor]) -> None:
        super().__init__()
        self._indices = itertools.count()
        self._replacements = {call: value.clone() for calls, value in replacements.items() for call in calls[:1]}
        self._replacements |= {call: self._replacements[calls[0]] for calls in replacements for call in calls[1:]}
        self.stem_from_parameters = WeakIdKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = next(self._indices), func
        if call in self._replacements:
            return self._replacements[call]
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if any(self._stems_from_parameters(value) for value in tree_leaves((args, kwargs))):
            # `x[i] = y` returns nothing, and changes x.
            for value in tree_leaves(args[0] if result is None else result):
                if isinstance(value, Tensor):
                    self.stem_from_parameters[value] = True
        return result

    def _stems_from_parameters(self, value: Any) -> bool:
        return isinstance(value, nn.Parameter) or (isinstance(value, Tensor) and value in self.stem_from_parameters)
