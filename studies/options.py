"""Options that the studies of the paper share."""

import os
from pathlib import Path

import click

scale = click.option(
    "--scale",
    type=click.Choice(["tiny", "small", "paper"]),
    metavar="[small|paper]",
    default="small",
    show_default=True,
    help="Sizes: minutes, or the paper's.",
)

data = click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Folder that holds war_and_peace.txt (plain or as .xz) or cmu_mocap.tar.xz, as the study "
    "needs; else they are downloaded.",
)

text = click.option(
    "--text", "file", type=click.Path(path_type=Path), help="Another text, a file in UTF-8."
)

output = click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("studies-output"),
    show_default=True,
    help="Folder of databases and figures.",
)

jobs = click.option(
    "--jobs", default=os.cpu_count() or 1, show_default=True, help="Trials at a time."
)
