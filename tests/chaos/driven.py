"""python -m tests.chaos.driven WORDS...: `pcpo-ray train WORDS...`, with workers to which faults can be done."""

import sys

from pcpo_ray.cluster import broadcast
from pcpo_ray.commands import app
from tests.support import faults

if __name__ == "__main__":
    faults.install(setattr)
    broadcast.DEADLINE, broadcast.GRACE = 8.0, 3.0
    sys.argv = ["pcpo-ray", "train", *sys.argv[1:]]
    app.main()
