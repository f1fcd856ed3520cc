"""`python -m pcpo_ray`: the command line where no `pcpo-ray` is on the path."""

from pcpo_ray.commands.app import main

if __name__ == "__main__":
    main()
