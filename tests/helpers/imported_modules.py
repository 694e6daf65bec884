"""Import names of the public API in a new process, and print the heavy modules that come along.

python imported_modules.py [NAME or .SUBMODULE]...
"""

import importlib
import sys

import pipelines

HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate", "evaluate", "trl")

if __name__ == "__main__":
    for name in sys.argv[1:]:
        if name.startswith("."):
            importlib.import_module(name, "pipelines")
        else:
            assert callable(getattr(pipelines, name)), name
    print(*(name for name in HEAVY if name in sys.modules))
