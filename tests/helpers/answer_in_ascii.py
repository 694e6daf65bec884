"""Print a label and answer in.jsonl by its ids: on the terminal, in out.csv and in out.jsonl.

python answer_in_ascii.py LABEL_IN_ASCII
"""

import ast
import sys
from pathlib import Path

from pipelines.console import console
from pipelines.inference.resumable_jsonl import map_file
from pipelines.terminal import report_errors, stop


def answers(examples):
    """Answer with the id of each row."""
    return [{"label": row["id"]} for row in examples.rows]


if __name__ == "__main__":
    label = ast.literal_eval(sys.argv[1])
    console().print(label, markup=False)
    with report_errors():
        for out in (None, Path("out.csv"), Path("out.jsonl")):
            map_file(Path("in.jsonl"), answers, out, {}, chunk_size=8)
        print(label)
        stop([label], 3)
