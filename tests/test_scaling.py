"""The formulas of docs/scaling.md: worked out by hand, against two processes, and on the page."""

import sys

import pytest

from helpers.factories import ROOT

BENCHMARKS = ROOT / "scripts" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import scaling  # noqa: E402
import sharing  # noqa: E402
import two_processes  # noqa: E402
import weak_scaling  # noqa: E402

from pipelines.planning.gpus import CONTEXT, GpuBytes  # noqa: E402
from pipelines.planning.parameters import Parameters  # noqa: E402

# Ten blocks of 90 parameters, and 100 outside of them
PARAMETERS = Parameters(
    trainable={"embeddings": 100, "attention": 900, "adapter": 0},
    frozen={},
    num_layers=10,
    in_blocks=900,
    vocabulary=10,
    width=10,
)
FULL = GpuBytes(weights=4000, casts=1800, gradients=4000, optimizer=8000, loss=500, per_row=7.0)


def held(engine, num_gpus):
    """Return the bytes on a GPU without CUDA's own."""
    return sharing.held(engine, FULL, PARAMETERS, num_gpus) - CONTEXT


def test_ddp_holds_everything_on_each_gpu():
    assert held("DDP", 1) == held("DDP", 64) == 4000 + 1800 + 4000 + 8000 + 500
    assert held("FSDP2", 1) == held("DDP", 1)  # nobody to share with


def test_fsdp2_shares_the_states_and_gathers_two_blocks():
    # bfloat16: 100 outside and two blocks of 90; the gradients of 100 outside and of one block
    gathered = 2 * (100 + 180) + 2 * (100 + 90)
    assert held("FSDP2", 4) == 16_000 / 4 + gathered + 500


def test_zero_shares_the_optimizer_and_zero_3_the_weights_too():
    # fp32: gradients, two moments and the optimizer's copy of the weights are divided; each holds a
    # bucket of all gradients, bfloat16 copies, and the weights of a pass
    whole = 4 * 1000 + 1800 + 500 + 4000
    assert held("ZeRO-2", 4) == 16 * 1000 / 4 + whole
    assert held("ZeRO-3", 4) == (4000 + 16 * 1000) / 4 + whole


@pytest.mark.parametrize(
    ("engine", "passes", "expected"),
    [
        ("DDP", 1, 3 / 4 * 2 * 4 * 1000),  # fp32 gradients, reduced everywhere
        ("DDP", 8, 3 / 4 * 2 * 4 * 1000),  # once a step
        ("FSDP2", 1, 3 / 4 * 2 * (900 + 900 + 100 + 1000)),  # blocks twice, the rest once
        ("FSDP2", 8, 3 / 4 * 2 * (8 * (900 + 900 + 100) + 1000)),
        ("ZeRO-2", 8, 3 / 4 * 4 * (8 * 1000 + 1000)),
        ("ZeRO-3", 8, 3 / 4 * 4 * 8 * (2 * 1000 + 1000)),
    ],
)
def test_bytes_of_a_step_on_four_gpus(engine, passes, expected):
    assert sharing.sent(engine, 1000, PARAMETERS, 4, passes=passes) == expected


SMALL = {"n_layer": 3, "n_embd": 96, "n_head": 2, "n_positions": 64, "vocab_size": 500}
SMALL |= {"bos_token_id": 0, "eos_token_id": 0}


def test_two_processes_send_and_keep_what_the_formulas_say():
    # 3 blocks, each 12 * 96**2 and 13 * 96; outside 500 + 64 positions and a norm of 2 * 96
    parameters = 3 * (12 * 96**2 + 13 * 96) + (500 + 64) * 96 + 2 * 96
    ddp, fsdp2 = two_processes.in_two_processes([("DDP", 2), ("FSDP2", 2)], SMALL)
    formula = two_processes.sent_formula("FSDP2", 2, SMALL, fsdp2["reduce_scatter"])
    assert ddp["sent"] == pytest.approx(4 * parameters, rel=0.02)  # half of twice fp32
    assert fsdp2["sent"] == pytest.approx(formula, rel=0.02)
    states = 16 * parameters  # weights, gradients and two moments
    assert ddp["kept"] == pytest.approx(states, rel=0.02)
    assert fsdp2["kept"] == pytest.approx(states / 2, rel=0.02)


def test_the_page_has_the_numbers_of_the_script(tmp_path):
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8").splitlines()
    (small,) = [each for each in scaling.subjects(tmp_path, ["124M"]) if each.method == "full"]
    assert small.trained == 124_439_808
    for table in (
        scaling.memory_table,
        scaling.rows_table,
        scaling.bytes_table,
        scaling.time_table,
    ):
        for line in table([small]):
            assert line in page, line


def test_one_and_two_processes_are_trained_and_compared(commands, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", str(commands.python))
    monkeypatch.setenv("PYTHON_EXEC", str(commands.python))
    sizes = ["--rows", "1", "--tokens", "16", "--repetitions", "1"]
    monkeypatch.setattr(sys, "argv", ["weak_scaling.py", *sizes])
    weak_scaling.main()
    row = capsys.readouterr().out.splitlines()[2]
    one, two, efficiency = (cell.split()[0] for cell in row.split(" | ")[1:])
    one, two = (int(each.replace(",", "")) for each in (one, two))
    assert one > 0 < two
    assert float(efficiency) == pytest.approx(two / (2 * one), abs=0.01)
