"""Arms compared on the same seeds: which runs a study has, making them, and what they say together.

plan        the study's file: arms, seeds, targets, the search for a learning rate; axes: what must be equal
running     its runs, several at a time, each a `pcpo-ray train`
results     the stored runs, checked and read        statistics  intervals and tests for few seeds
table       the result in a terminal and in Markdown  page, charts  the result as one self-contained page
"""
