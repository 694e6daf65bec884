"""Results to export: one of each kind of model."""

import pytest

from helpers.factories import make_tasks


@pytest.fixture(scope="package")
def results(tmp_path_factory, checkpoint, helpdesk):
    """A folder with a result of each kind, below the name of what it is."""
    from pipelines.flow import run
    from pipelines.recipe.recipe import Recipe
    from pipelines.recipe.values import Int8, Lora, Model, Train

    tasks = make_tasks(helpdesk)
    cases = {
        "language": (tasks["causal_lm"], None, None),
        "reply": (tasks["instruction_tuning"], None, Lora(r=4)),
        "classifier": (tasks["text_classification"], Int8(), Lora(r=4)),
        "answers": (tasks["question_answering"], None, Lora(r=4)),
    }
    folder = tmp_path_factory.mktemp("results")
    for name, (task, quantization, lora) in cases.items():
        recipe = Recipe(
            name=name,
            task=task,
            model=Model(name_or_path=str(checkpoint)),
            quantization=quantization,
            lora=lora,
            train=Train(max_steps=8, learning_rate=1e-2, warmup_steps=0),
            license="apache-2.0",
            output_dir=str(folder / name),
        )
        run(recipe)
    return folder
