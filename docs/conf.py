"""How Sphinx builds these pages: ``make docs``. Nothing is downloaded while it does."""

import os
import re
import shutil
import sys
from pathlib import Path

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

import lyap_optuna  # noqa: E402

project = "lyap-optuna"
author = "The lyap-optuna authors"
project_copyright = author
version = release = lyap_optuna.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "optunahub"]
highlight_language = "none"
# Links to what others document (Optuna, PyTorch) are names only; our own must lead somewhere.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!lyap_optuna\.).*|.*\._.*")]

# Pages in Markdown and notebooks. Notebooks and code cells run when the pages are built.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds for a cell, on a busy machine
nb_merge_streams = True
nb_output_stderr = "remove-warn"  # what a cell warns of is mended, not shown
os.environ["PYTHONPATH"] = str(ROOT)
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm would like ipywidgets
os.environ["PLOTLY_RENDERER"] = "notebook"  # plotly.js in the page, not from a server

# The reference, from docstrings.
autodoc_member_order = "bysource"
autodoc_mock_imports = ["fastai", "sb3_contrib", "stable_baselines3", "transformers"]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True}
templates_path = ["_templates"]  # of the page that autosummary writes for each name
napoleon_google_docstring = True
napoleon_numpy_docstring = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = f"lyap-optuna {version}"
html_static_path = ["_static"]
html_css_files = ["lyap.css"]
copybutton_prompt_text = r"\$ |>>> |\.\.\. "
copybutton_prompt_is_regexp = True


def write_inline(translator: HTML5Translator, node: nodes.Element) -> None:
    """Write a formula as MathML, which browsers draw by themselves."""
    translator.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def write_block(translator: HTML5Translator, node: nodes.Element) -> None:
    """Write a formula that stands by itself."""
    translator.body.append(latex2mathml.converter.convert(node.astext(), display="block"))
    raise nodes.SkipNode


def gather_studies(app: Sphinx) -> None:
    """Write a page for each ``studies/*/README.md``, and one that lists them."""
    folder = HERE / "gallery"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    pages = {path: folder / f"{path.parent.name}.md" for path in ROOT.glob("studies/*/README.md")}
    index = "# Studies\n\nEach was run as its page says, and can be run again.\n"
    for readme, page in sorted(pages.items()):

        def moved(link: re.Match[str], here: Path = readme.parent) -> str:
            target = (here / link[1]).resolve()
            return f"]({os.path.relpath(pages.get(target, target), folder)}"

        text = re.sub(r"\]\((?!https?:|#)([^)#]+)", moved, readme.read_text())
        page.write_text(text)
        title = re.search(r"^# (.*)", text, re.MULTILINE)
        picture = re.search(r"^!\[.*\]\(.*\)", text, re.MULTILINE)
        index += f"\n## [{title[1] if title else page.stem}]({page.name})\n"
        index += f"\n[{picture[0]}]({page.name})\n" if picture else ""
    listed = "\n".join(page.stem for _, page in sorted(pages.items()))
    index += f"\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"
    (folder / "index.md").write_text(index)


def link_to_gathered(app: Sphinx, name: str, source: list[str]) -> None:
    """Turn links to the README of a study, as a code host follows them, to its page here."""
    source[0] = re.sub(r"\]\(\.\./studies/(\w+)/README\.md", r"](gallery/\1.md", source[0])


def put_parameters_first(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Move parameters, results and errors up to the first sentence, before the explanation."""
    fields: list[str] = []
    prose: list[str] = []
    into = prose
    for line in lines:
        if line and not line[0].isspace():
            into = fields if line in ("Args:", "Returns:", "Raises:") else prose
        into.append(line)
    first = prose.index("") if "" in prose else len(prose)
    lines[:] = [*prose[:first], "", *fields, "", *prose[first:]]


def setup(app: Sphinx) -> None:
    """Register what is made before the pages are read."""
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(write_inline, None),  # type: ignore[arg-type]
        block_renderers=(write_block, None),  # type: ignore[arg-type]
    )
    app.connect("builder-inited", gather_studies)
    app.connect("source-read", link_to_gathered)
    # Before napoleon, which reads the sections.
    app.connect("autodoc-process-docstring", put_parameters_first, priority=400)
