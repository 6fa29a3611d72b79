"""Compares with the peers, then measures one node in all scenarios: `python -m bench.all`.

Takes about 40 minutes; nothing else should run on the machine meanwhile.
"""

import sys

from bench import compare, scenarios


def main() -> None:
    sys.argv[1:] = []
    compare.main()
    scenarios.main()


if __name__ == "__main__":
    main()
