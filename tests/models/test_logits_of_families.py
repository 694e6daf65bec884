"""What a family does to its logits after the head counts in every loss and score."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM

import pipelines.models.attention
from helpers.factories import make_tasks
from pipelines.data.load import load_splits
from pipelines.errors import RecipeError
from pipelines.models.build import build_model
from pipelines.models.chunked_loss import TokenLosses
from pipelines.models.probes import gives_logits_of_head
from pipelines.recipe.recipe import Recipe
from pipelines.recipe.values import Lora, Model, Train
from pipelines.training.build import build_trainer
from pipelines.training.language_model import LanguageModelTrainer

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
OWN_LOGITS = {
    "granite": {
        "logits_scaling": 8.0,
        "embedding_multiplier": 4.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.25,
    },
    "cohere": {"logit_scale": 0.25},
    "gemma2": {
        "final_logit_softcapping": 2.0,
        "attn_logit_softcapping": 2.0,
        "query_pre_attn_scalar": 16,
    },
    # trl's fused head knows nothing of the cap of the first, and scales that of the second
    "recurrent_gemma": {
        "lru_width": 32,
        "block_types": ("recurrent", "attention"),
        "attention_window_size": 64,
        "logits_soft_cap": 2.0,
    },
}
LOGITS_OF_HEAD = {"llama": {}, "mpt": {"d_model": 32, "n_heads": 2, "n_layers": 2}}
LOGITS_OF_HEAD["mpt"] |= {"max_seq_len": 256, "logit_scale": 0.5}  # which its model ignores
FAMILIES = [*OWN_LOGITS, *LOGITS_OF_HEAD]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """A checkpoint of each family."""
    found = {}
    for name, options in (OWN_LOGITS | LOGITS_OF_HEAD).items():
        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
        sizes = {} if name == "mpt" else SIZES
        config = AutoConfig.for_model(name, vocab_size=len(tokenizer), **ids, **sizes, **options)
        torch.manual_seed(0)
        found[name] = tmp_path_factory.mktemp(name)
        AutoModelForCausalLM.from_config(config).save_pretrained(found[name])
        tokenizer.save_pretrained(found[name])
    return found


@pytest.fixture(autouse=True)
def plain_attention(monkeypatch):
    """Take the processor for one whose short rows take plain attention."""
    monkeypatch.setattr(pipelines.models.attention, "onednn_fp32_is_exact", lambda: True)


def prepared(folder, task, tokenizer, output, *, lora=None, **train):
    """Return a model as it begins, its trainer, and both splits as features."""
    recipe = Recipe(
        name="family",
        task=task,
        model=Model(name_or_path=str(folder)),
        lora=lora,
        train=Train(
            max_steps=1,
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=1e9,
            learning_rate=1e-3,
            logging_steps=1,
            save_steps=None,
            global_batch_size=8,
            per_device_train_batch_size=2,
            **train,
        ),
        output_dir=str(output),
    )
    splits = load_splits(task.dataset)
    train, held_out = (
        task.features(rows, tokenizer, (), training=rows is splits.train)
        for rows in (splits.train, splits.held_out)
    )
    model = build_model(recipe, tokenizer, ())
    begin = copy.deepcopy(model)
    trainer = build_trainer(
        recipe, model, tokenizer, train=train, scored={"eval": held_out}, labels=()
    )
    return begin, trainer, held_out


def token_nlls(model, batch, labels):
    """Return the loss of each token that `labels` has, by the model's own logits."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    return F.cross_entropy(
        logits.transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100
    )


def nll_of(model, task, tokenizer, rows):
    """Return summed loss and number of the tokens of rows, one row at a time."""
    total, count = 0.0, 0
    for row in rows:
        batch = task.collate(tokenizer.pad_token_id)([row])
        with torch.no_grad():
            total += float(token_nlls(model.eval(), batch, batch["labels"]).sum())
        count += int((batch["labels"][:, 1:] != -100).sum())
    return total, count


def check_step(trainer, begin, loss_of):
    """Train a step and compare loss, gradient norm and weights with those of torch's AdamW."""
    batches = []
    given = trainer.training_step

    def kept(model, inputs, *arguments, **options):
        batches.append({name: value.clone() for name, value in inputs.items()})
        return given(model, inputs, *arguments, **options)

    trainer.training_step = kept
    trainer.train()
    assert len(batches) == 4  # accumulated
    begin.train()
    weights = [p for p in begin.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.0)
    loss = loss_of(begin, batches)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in weights if p.grad is not None]).norm()
    optimizer.step()
    (step,) = [row for row in trainer.state.log_history if "grad_norm" in row]
    assert step["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert step["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    trained = dict(trainer.model.named_parameters())
    for name, parameter in begin.named_parameters():
        moved = (trained[name] - parameter).abs()
        assert float((moved > 1e-5).float().mean()) < 0.01, name  # gradients near 0 have any sign


def mean_nll(model, batches):
    """Return the loss of a global batch: of all its tokens, not of its parts."""
    nlls = [token_nlls(model, batch, batch["labels"]).sum() for batch in batches]
    return sum(nlls) / sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)


@pytest.mark.parametrize("family", FAMILIES)
def test_causal_lm_scores_and_learns_by_the_models_own_logits(
    family, folders, helpdesk, tokenizer, tmp_path
):
    task = make_tasks(helpdesk)["causal_lm"]
    begin, trainer, held_out = prepared(folders[family], task, tokenizer, tmp_path)
    nll, count = nll_of(begin, task, tokenizer, held_out.dataset)
    metrics = trainer.score("eval").metrics
    assert metrics["perplexity"] == pytest.approx(math.exp(nll / count), rel=1e-4)
    assert metrics["predicted_tokens"] == count
    check_step(trainer, begin, mean_nll)
    assert isinstance(trainer, LanguageModelTrainer) == (family in LOGITS_OF_HEAD)


def test_gpt2_keeps_the_loss_at_its_head(checkpoint, helpdesk, tokenizer, tmp_path):
    task = make_tasks(helpdesk)["causal_lm"]
    _, trainer, held_out = prepared(checkpoint, task, tokenizer, tmp_path)
    assert isinstance(trainer, LanguageModelTrainer)
    batch = task.collate(tokenizer.pad_token_id)(held_out.dataset[:2])
    _, outputs = trainer.compute_loss(trainer.model, batch, True, num_items_in_batch=1)
    assert isinstance(outputs, TokenLosses)


def test_a_head_is_tried_whatever_its_weights(folders):
    model = AutoModelForCausalLM.from_pretrained(folders["gemma2"])
    torch.nn.init.zeros_(model.lm_head.weight)  # logits of 0 are not changed by a cap
    assert not gives_logits_of_head(model)
    model.config.final_logit_softcapping = None
    assert gives_logits_of_head(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_instruction_tuning_scores_and_learns_by_the_models_own_logits(
    family, folders, helpdesk, tokenizer, tmp_path
):
    task = make_tasks(helpdesk)["instruction_tuning"]
    begin, trainer, held_out = prepared(folders[family], task, tokenizer, tmp_path)
    nll, count = nll_of(begin, task, tokenizer, held_out.dataset)
    rows = DataLoader(
        trainer.eval_dataset, batch_size=4, collate_fn=task.collate(tokenizer.pad_token_id)
    )
    scored = torch.cat([trainer.prediction_step(trainer.model, b, False)[1] for b in rows])
    assert scored.sum(0).tolist() == pytest.approx([nll, count], rel=1e-4)
    check_step(trainer, begin, mean_nll)


@pytest.mark.parametrize("family", FAMILIES)
def test_preference_tuning_compares_by_the_models_own_logits(
    family, folders, helpdesk, tokenizer, tmp_path
):
    task = make_tasks(helpdesk)["preference_tuning"]
    lora = Lora(r=2, target_modules=("all-linear",))
    begin, trainer, _ = prepared(folders[family], task, tokenizer, tmp_path, lora=lora)

    def log_probs(model, batch):
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        return -token_nlls(model, batch, labels).sum(1)

    def loss_of(model, batches):
        with torch.no_grad(), model.disable_adapter():
            reference = [log_probs(model, batch).chunk(2) for batch in batches]
        policy = [log_probs(model, batch).chunk(2) for batch in batches]
        margins = [(p[0] - r[0]) - (p[1] - r[1]) for p, r in zip(policy, reference, strict=True)]
        return -F.logsigmoid(task.beta * torch.cat(margins)).mean()

    batch = next(iter(trainer.get_eval_dataloader()))
    _, pairs, _ = trainer.prediction_step(trainer.model, batch, False)
    with torch.no_grad():
        chosen, rejected = log_probs(begin.eval(), batch).chunk(2)
    expected = torch.stack([chosen, rejected, chosen, rejected], dim=1)
    torch.testing.assert_close(pairs, expected, rtol=1e-4, atol=1e-4)
    check_step(trainer, begin, loss_of)


def test_examples_are_not_packed_where_a_family_would_mix_them(
    folders, helpdesk, tokenizer, tmp_path
):
    task = replace(make_tasks(helpdesk)["instruction_tuning"], packing=True)
    prepared(folders["llama"], task, tokenizer, tmp_path)
    with pytest.raises(RecipeError, match="task.packing: mpt does not isolate the documents"):
        prepared(folders["mpt"], task, tokenizer, tmp_path)


def test_a_body_that_another_head_names_otherwise_is_not_begun_anew(folders, helpdesk, tokenizer):
    """transformers' LlamaForQuestionAnswering would begin with random weights."""
    task = make_tasks(helpdesk)["question_answering"]
    recipe = Recipe(name="a", task=task, model=Model(name_or_path=str(folders["llama"])))
    message = "lacks 20 tensors .* LlamaForQuestionAnswering names them otherwise, and does not"
    with pytest.raises(RecipeError, match=message):
        build_model(recipe, tokenizer, ())
