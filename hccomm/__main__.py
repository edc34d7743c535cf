# SPDX-License-Identifier: Apache-2.0
"""`python -m hccomm`: the command line of cli.py. Its own file, so that ranks can import cli."""

from hccomm.cli import main

if __name__ == "__main__":
    main()
