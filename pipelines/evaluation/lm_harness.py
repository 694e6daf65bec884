"""Score a language model with EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.console import console
from pipelines.errors import Problem, RecipeError
from pipelines.hub.load import load_result
from pipelines.process import quiet_libraries


@quiet_libraries()
def evaluate_with_harness(
    repo: str | Path,
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Return and print the harness's results of each task.

    The model is handed over loaded, since the harness cannot load adapters on 8-bit bases. Raise
    RecipeError for a result that is no language model, and where the harness is not installed.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import make_table
    except ImportError:
        text = 'is not installed. Use `pip install -c constraints.txt -e ".[lm-eval]"`.'
        raise RecipeError([Problem("lm-eval", text)]) from None
    manager = TaskManager(include_path=str(include_path) if include_path else None)
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        text = f"the harness knows no {', '.join(unknown)}. `lm-eval ls tasks` lists them."
        raise RecipeError([Problem("tasks", text)])
    loaded = load_result(repo)
    if loaded.recipe.task.objective != "language_model":
        raise RecipeError([Problem(str(repo), "the harness scores language models only.")])
    model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size)
    found: dict[str, Any] = simple_evaluate(
        model=model, tasks=list(tasks), task_manager=manager, limit=limit
    )
    console().print(make_table(found), markup=False)
    results: dict[str, Any] = found["results"]
    return results
