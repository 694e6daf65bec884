"""Write eight rows to a named pipe, and keep it open until standard input is closed.

python write_lines.py PIPE
"""

import sys

if __name__ == "__main__":
    with open(sys.argv[1], "w") as pipe:
        pipe.write('{"text": "abc"}\n' * 8)
        pipe.flush()
        sys.stdin.read()
