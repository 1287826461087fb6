"""Write README.md from nbs/index.ipynb: nbdev's own cell filters, then nbconvert (no Quarto needed)."""
import re
from pathlib import Path

import nbformat
import yaml
from execnb.nbio import nb2str, read_nb
from nbconvert import MarkdownExporter
from nbdev.processors import FilterDefaults

PROJECT = Path(__file__).resolve().parent.parent
NOTE = '<!-- Written from nbs/index.ipynb by `make readme`: edit that, not this. -->\n\n'


class Filters(FilterDefaults):
    "nbdev's filters, without the one that runs code and the warning (the note above stands for it)."
    def base_procs(self): return [each for each in super().base_procs() if each.__name__ not in ('exec_show_docs', 'insert_warning')]


def filtered(path: Path) -> nbformat.NotebookNode:
    "A notebook as its readers see it: hidden cells gone, the title a heading again."
    processor = Filters().nb_proc(read_nb(path))
    processor.process()
    notebook = nbformat.reads(nb2str(processor.nb), 4)
    cells = [each for each in notebook.cells if each.source.strip()]
    front = cells[0]
    fields = yaml.safe_load(front.source.strip().strip('-'))
    front.cell_type, front.source = 'markdown', f"# {fields['title']}\n\n> {fields['description']}"
    notebook.cells, notebook.metadata['language_info'] = cells, {'name': 'python'}
    return notebook


def readme(project: Path = PROJECT) -> str:
    "The text of README.md."
    text, _ = MarkdownExporter().from_notebook_node(filtered(project / 'nbs' / 'index.ipynb'))
    text = re.sub(r'\n{3,}', '\n\n', text)
    return NOTE + text.strip() + '\n'


if __name__ == '__main__':
    (PROJECT / 'README.md').write_text(readme(), encoding='utf-8')
