"""A finding is one line, in which what is to be typed stands apart."""

from pcpo_ray.commands.check.finding import Finding


def test_a_finding_is_one_line_whatever_a_library_says():
    found = Finding(part="aesthetic", tried="files", verdict="failed", detail="Error(s):\n\tMissing key(s)\n")
    assert found.line == "failed         aesthetic: files: Error(s): Missing key(s)"


def test_what_is_to_be_typed_is_kept_apart_from_what_follows_it():
    made = Finding(part="files", tried="all", verdict="failed", detail="fetch it with: hf a\nno b\n", remedy="ask")
    assert made.line == "failed         files: all: fetch it with: hf a; no b; ask"
