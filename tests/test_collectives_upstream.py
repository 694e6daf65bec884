"""What torch and gloo say where another rank is gone; see pipelines/collectives_upstream.py."""

import subprocess
import sys

import pytest

from pipelines.collectives_upstream import is_communication_error
from pipelines.errors import CheckpointError
from pipelines.results.disk import explain_disk_errors

REDUCE = """
import os, sys
from datetime import timedelta
import torch
from torch import distributed
from pipelines.collectives_upstream import is_communication_error

rank, file, how = int(sys.argv[1]), sys.argv[2], sys.argv[3]
limit = timedelta(seconds=3 if how == "late" else 60)
distributed.init_process_group(
    "gloo", init_method=f"file://{file}", rank=rank, world_size=2, timeout=limit
)
distributed.all_reduce(torch.ones(1))
if rank == 1:
    os._exit(0) if how == "gone" else sys.stdin.read()
try:
    distributed.all_reduce(torch.ones(1))
except RuntimeError as error:
    print(is_communication_error(error), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("how", ["gone", "late"])
def test_gloo_tells_of_a_rank_that_is_gone_and_of_one_that_is_late(how, tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", REDUCE, str(rank), str(tmp_path / "store"), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    assert ranks[0].communicate(timeout=60)[0] == "True\n"
    ranks[1].communicate(timeout=60)


def test_other_errors_are_none_of_communication():
    for error in (RuntimeError("size mismatch"), RuntimeError(), OSError("/gloo/"), ValueError("")):
        assert not is_communication_error(error)


def write_with(error: Exception, folder) -> None:
    """Raise an error where a file is written."""
    with explain_disk_errors(folder, num_bytes=1, advice=""):
        raise error


def test_an_error_of_another_rank_while_saving_is_no_error_of_the_disk(tmp_path):
    gloo = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] closed")
    with pytest.raises(RuntimeError) as raised:
        write_with(gloo, tmp_path)
    assert raised.value is gloo
    with pytest.raises(CheckpointError, match="could not be written"):
        write_with(RuntimeError("unexpected pos"), tmp_path)
