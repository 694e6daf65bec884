"""What a rehearsal measured becomes the memory and the time of a run."""

from dataclasses import replace

import pytest

from pipelines.planning.batches import Batches
from pipelines.planning.machine import predict_seconds
from pipelines.planning.memory import predict_peaks
from pipelines.planning.rehearsal import Block, Rehearsal

REHEARSAL = Rehearsal(
    num_layers=2,
    tokens=100,
    eval_tokens=200,
    scored_tokens=200,
    accumulation=1,
    trained=1000,
    peaks={"loading": 1000, "training": 1500, "evaluation": 1600, "saving": 1630},
    eval_per_token=0.2,
    block=Block(weights=10, gradients=5, optimizer=7, activations=20),
    activations_outside=4,
    step_seconds=1.2,
    update_seconds=0.2,
    block_seconds=0.4,
    eval_seconds=3.0,
    loss=1.0,
    metrics={"primary": "accuracy", "accuracy": 0.5},
    other_bytes=0,
)


def test_the_rehearsal_itself_is_predicted_as_it_was_measured():
    peaks = predict_peaks(REHEARSAL, num_layers=2, max_tokens=100, eval_tokens=200)
    assert peaks == REHEARSAL.peaks


def test_each_further_layer_adds_what_a_block_holds():
    peaks = predict_peaks(REHEARSAL, num_layers=12, max_tokens=100, eval_tokens=200)
    assert peaks["loading"] == 1000 + 10 * 10
    assert peaks["training"] == 1500 + 10 * (10 + 5 + 7 + 20)


def test_longer_batches_add_activations():
    peaks = predict_peaks(REHEARSAL, num_layers=3, max_tokens=300, eval_tokens=400)
    # one more block with three times its activations; twice those of the rehearsal once more
    assert peaks["training"] == 1500 + (10 + 5 + 7) + 3 * 20 + 2 * (2 * 20 + 4)


def test_with_activation_checkpointing_one_block_is_computed_again_whatever_their_number():
    block = replace(REHEARSAL.block, activations=3, recomputed=20)
    rehearsal = replace(REHEARSAL, block=block)
    peaks = predict_peaks(rehearsal, num_layers=12, max_tokens=100, eval_tokens=200)
    assert peaks["training"] == 1500 + 10 * (10 + 5 + 7 + 3)
    peaks = predict_peaks(rehearsal, num_layers=12, max_tokens=300, eval_tokens=400)
    # twice the rehearsal's two inputs, its block and what is outside once more
    assert peaks["training"] == 1500 + 10 * (10 + 5 + 7 + 3 * 3) + 2 * (2 * 3 + 20 + 4)


def test_evaluation_and_saving_keep_the_weights_and_the_optimizer_of_further_layers():
    peaks = predict_peaks(REHEARSAL, num_layers=12, max_tokens=300, eval_tokens=200)
    # the activations and gradients of the training are returned before
    assert peaks["evaluation"] == 1600 + 10 * (10 + 7)
    assert peaks["saving"] == 1630 + 10 * (10 + 7)


def test_further_tokens_of_an_evaluation_add_what_they_add_in_any_layer():
    peaks = predict_peaks(REHEARSAL, num_layers=3, max_tokens=100, eval_tokens=1200)
    assert peaks["evaluation"] == 1600 + (10 + 7) + 1000 * 0.2


def test_time_grows_with_layers_tokens_and_updated_parameters():
    batches = Batches(
        rows=4,
        accumulation=2,
        steps=10,
        mean_tokens=50.0,
        max_tokens=100,
        longest=25,
        largest=[],
    )
    found = predict_seconds(
        REHEARSAL, batches, num_layers=7, num_trained=3000, scored_tokens=400, num_evaluations=2
    )
    # a pass takes 0.2 s outside of its blocks and 7 x 0.4 in them, at half of the tokens
    assert found.step == pytest.approx(2 * 0.5 * (0.2 + 2.8) + 0.2 * 3)
    assert found.training == pytest.approx(10 * found.step)
    assert found.evaluation == pytest.approx(2 * 3.0 * (3.0 / 1.0) * 2)
    assert found.total == pytest.approx(found.training + found.evaluation)


def test_a_step_of_the_rehearsal_takes_what_it_took():
    batches = Batches(4, 1, 1, 100.0, 100, 25, [])
    found = predict_seconds(
        replace(REHEARSAL, step_seconds=1.2),
        batches,
        num_layers=2,
        num_trained=1000,
        scored_tokens=200,
        num_evaluations=1,
    )
    assert found.step == pytest.approx(1.2)
    assert found.evaluation == pytest.approx(3.0)
