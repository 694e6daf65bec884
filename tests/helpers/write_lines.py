"""Write eight rows to a named pipe, and keep it open until standard input is closed.

python write_lines.py PIPE
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    with Path(sys.argv[1]).open("w") as pipe:
        pipe.write('{"text": "abc"}\n' * 8)
        pipe.flush()
        sys.stdin.read()
