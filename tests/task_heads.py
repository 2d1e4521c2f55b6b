"""The task heads of transformers, as tiny models with random weights and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers as tf
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BigBirdConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlavaConfig,
    SegformerConfig,
    T5Config,
    VideoMAEConfig,
    ViTConfig,
    Wav2Vec2Config,
    WhisperConfig,
)

VOCAB_SIZE = 32
TOKENS = torch.randint(1, VOCAB_SIZE, (4, 8), generator=torch.Generator().manual_seed(0))


def _random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def _bert(**config: Any) -> BertConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=8, **sizes, **config)


def _gpt2(**config: Any) -> GPT2Config:
    sizes = {"n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return GPT2Config(vocab_size=VOCAB_SIZE, **sizes, **tokens, **config)


def _vit(**config: Any) -> ViTConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTConfig(image_size=8, patch_size=4, **sizes, **config)


def _wav2vec2(**config: Any) -> Wav2Vec2Config:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    convolutions = {"conv_dim": (8, 8), "conv_kernel": (4, 4), "conv_stride": (4, 4), "feat_extract_norm": "layer"}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8}
    return Wav2Vec2Config(vocab_size=VOCAB_SIZE, pad_token_id=0, **sizes, **convolutions, **positions, **config)


def _segformer(**config: Any) -> SegformerConfig:
    return SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 8],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 1],
        mlp_ratios=[1, 1],
        decoder_hidden_size=8,
        **config,
    )


def _big_bird() -> BigBirdConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BigBirdConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=8, is_decoder=True, pad_token_id=0, **sizes)


def _t5() -> T5Config:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return T5Config(vocab_size=VOCAB_SIZE, decoder_start_token_id=0, **sizes)


def _whisper() -> WhisperConfig:
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_mel_bins": 4}
    lengths = {"max_source_positions": 4, "max_target_positions": 8}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    return WhisperConfig(
        vocab_size=VOCAB_SIZE, suppress_tokens=[], begin_suppress_tokens=[], **layers, **sizes, **lengths, **tokens
    )


def _llava() -> LlavaConfig:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = tf.CLIPVisionConfig(image_size=8, patch_size=4, projection_dim=16, **sizes)
    text = tf.LlamaConfig(vocab_size=VOCAB_SIZE, num_key_value_heads=2, pad_token_id=0, **sizes)
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=31,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )


class TunedLM(GPT2LMHeadModel):
    """A class whose name is in no table."""


class WeighsItsClasses(BertForSequenceClassification):
    """A loss of its own, with other names."""

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        output = super().forward(input_ids)
        if labels is not None:
            weights = torch.tensor([1.0, 2.0, 4.0])
            output["loss"] = F.cross_entropy(output.logits, labels, weight=weights, label_smoothing=0.1)
        return output


def softmax(logits: Tensor) -> Tensor:
    """The log of the averaged probabilities over the last dimension. The first dimension is that of the models."""
    return logits.double().softmax(-1).mean(0).log()


def of_pixels(logits: Tensor) -> Tensor:
    return logits.double().softmax(2).mean(0).log()


def log_odds(logits: Tensor) -> Tensor:
    return torch.logit(logits.double().sigmoid().mean(0))


def mean(logits: Tensor) -> Tensor:
    return logits.double().mean(0)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


def of_next_tokens(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits[:, :-1], labels[:, 1:])


def of_weighed_classes(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, weight=logits.new_tensor([1, 2, 4]), label_smoothing=0.1)


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(logits.flatten(), labels.double().flatten())


def of_flags(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels.double())


def of_upsampled_pixels(logits: Tensor, labels: Tensor) -> Tensor:
    logits = F.interpolate(logits, size=labels.shape[1:], mode="bilinear")
    return F.cross_entropy(logits, labels) if logits.shape[1] > 1 else of_flags(logits[:, 0], labels)


def of_alignments(logits: Tensor, labels: Tensor) -> Tensor:
    lengths = torch.full((len(logits),), logits.shape[1]), torch.full((len(labels),), labels.shape[1])
    return F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), labels, *lengths, reduction="sum")


class Head(NamedTuple):
    """A model class, the configuration of its models, what they get; by hand the average of logits and its loss."""

    model_class: Any
    config: Any
    inputs: dict[str, Tensor]
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
    average: Callable[[Tensor], Tensor] = softmax


_SENTENCES = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
_CLASSES = torch.tensor([0, 2, 1, 0])
_FLAGS = torch.tensor([[0.0, 1, 1], [1, 0, 0], [1, 1, 1], [0, 0, 1]])
_VALUES = torch.tensor([0.0, 0.5, -1.0, 2.0])
_PICTURES = _random(4, 3, 8, 8)
_SOUND = _random(4, 256)
_SHORT = torch.randint(1, VOCAB_SIZE, (4, 3), generator=torch.Generator().manual_seed(1))
_PADDED = TOKENS.masked_fill(torch.arange(8) >= torch.tensor([[8], [6], [7], [5]]), 0)

HEADS = {
    "causal LM": Head(tf.AutoModelForCausalLM, _gpt2(), {**_SENTENCES, "labels": TOKENS}, of_next_tokens),
    "causal LM of a user's class": Head(TunedLM, _gpt2(), {**_SENTENCES, "labels": TOKENS}, of_next_tokens),
    "causal LM whose first call is unlike the others": Head(
        tf.AutoModelForCausalLM, _big_bird(), {**_SENTENCES, "labels": TOKENS}, of_next_tokens
    ),
    "masked LM": Head(
        tf.AutoModelForMaskedLM, _bert(), {**_SENTENCES, "labels": TOKENS.masked_fill(TOKENS > 20, -100)}
    ),
    "seq2seq LM": Head(tf.AutoModelForSeq2SeqLM, _t5(), {**_SENTENCES, "labels": TOKENS}),
    "speech seq2seq": Head(
        tf.AutoModelForSpeechSeq2Seq, _whisper(), {"input_features": _random(4, 4, 8), "labels": TOKENS}
    ),
    "image-text-to-text": Head(
        tf.AutoModelForImageTextToText,
        _llava(),
        {
            **_SENTENCES,
            "input_ids": torch.where(torch.arange(8) < 4, 31, TOKENS % 31),
            "pixel_values": _PICTURES,
            "labels": TOKENS % 31,
        },
        of_next_tokens,
    ),
    "sequence classification": Head(
        tf.AutoModelForSequenceClassification, _bert(num_labels=3), {**_SENTENCES, "labels": _CLASSES}
    ),
    "sequence classification by the last token": Head(
        tf.AutoModelForSequenceClassification, _gpt2(num_labels=3), {"input_ids": _PADDED, "labels": _CLASSES}
    ),
    "sequence classification of a user's class with a loss of its own": Head(
        WeighsItsClasses, _bert(num_labels=3), {"input_ids": TOKENS, "labels": _CLASSES}, of_weighed_classes
    ),
    "multi-label classification": Head(
        tf.AutoModelForSequenceClassification,
        _bert(num_labels=3, problem_type="multi_label_classification"),
        {**_SENTENCES, "labels": _FLAGS},
        of_flags,
        log_odds,
    ),
    "multi-label classification by the type of the labels": Head(
        tf.AutoModelForSequenceClassification, _bert(num_labels=3), {**_SENTENCES, "labels": _FLAGS}, of_flags, log_odds
    ),
    "regression": Head(
        tf.AutoModelForSequenceClassification,
        _bert(num_labels=1),
        {**_SENTENCES, "labels": _VALUES},
        squared_error,
        mean,
    ),
    "regression of three values": Head(
        tf.AutoModelForSequenceClassification,
        _bert(num_labels=3, problem_type="regression"),
        {**_SENTENCES, "labels": _random(4, 3)},
        squared_error,
        mean,
    ),
    "token classification": Head(
        tf.AutoModelForTokenClassification, _bert(num_labels=3), {**_SENTENCES, "labels": TOKENS % 3}
    ),
    "multiple choice": Head(
        tf.AutoModelForMultipleChoice,
        _bert(),
        {"input_ids": TOKENS.unflatten(0, (2, 2)), "labels": torch.tensor([1, 0])},
    ),
    "next sentence prediction": Head(
        tf.AutoModelForNextSentencePrediction, _bert(), {**_SENTENCES, "labels": torch.tensor([1, 0, 0, 1])}
    ),
    "question answering": Head(
        tf.AutoModelForQuestionAnswering,
        _bert(),
        {**_SENTENCES, "start_positions": torch.tensor([1, 2, 0, 5]), "end_positions": torch.tensor([3, 2, 7, 6])},
    ),
    "image classification": Head(
        tf.AutoModelForImageClassification, _vit(num_labels=3), {"pixel_values": _PICTURES, "labels": _CLASSES}
    ),
    "video classification": Head(
        tf.AutoModelForVideoClassification,
        VideoMAEConfig(
            image_size=8,
            patch_size=4,
            num_frames=2,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            num_labels=3,
        ),
        {"pixel_values": _random(4, 2, 3, 8, 8), "labels": _CLASSES},
    ),
    "audio classification": Head(
        tf.AutoModelForAudioClassification, _wav2vec2(num_labels=3), {"input_values": _SOUND, "labels": _CLASSES}
    ),
    "CTC": Head(tf.AutoModelForCTC, _wav2vec2(), {"input_values": _SOUND, "labels": _SHORT}, of_alignments),
    "semantic segmentation": Head(
        tf.AutoModelForSemanticSegmentation,
        _segformer(num_labels=3),
        {"pixel_values": _random(4, 3, 16, 16), "labels": torch.randint(0, 3, (4, 16, 16))},
        of_upsampled_pixels,
        of_pixels,
    ),
    "semantic segmentation of one class": Head(
        tf.AutoModelForSemanticSegmentation,
        _segformer(num_labels=1),
        {"pixel_values": _random(4, 3, 16, 16), "labels": torch.randint(0, 2, (4, 16, 16))},
        of_upsampled_pixels,
        log_odds,
    ),
}


def save_models(folder: Path, head: Head, num_models: int = 3) -> list[Path]:
    """Models of one configuration with different weights, each in a folder of its own."""
    folders = [folder / str(seed) for seed in range(num_models)]
    for seed, path in enumerate(folders):
        tf.set_seed(seed)
        make = getattr(head.model_class, "from_config", head.model_class)
        model = make(head.config)
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(0, 0.5)
        model.save_pretrained(path)
    return folders
