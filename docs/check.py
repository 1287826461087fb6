"""Are the notebooks valid and clean, the modules exported from them, and the README in step? Prints what is not, and how to mend it."""
import difflib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat

from readme import PROJECT, readme
from whisper_nb.mirror import read_model
from whisper_nb.models import DEMO, DEMO_DIR

MADE = ('whisper_nb/*.py', 'nbs/**/*.ipynb')  # What export and clean write


def made(project: Path) -> dict[str, bytes]:
    "The files that export and clean write."
    return {str(path.relative_to(project)): path.read_bytes() for pattern in MADE for path in project.glob(pattern)
            if '.ipynb_checkpoints' not in path.parts}


def broken_notebooks() -> list[str]:
    "Notebooks that are not valid: nbdev only warns of them."
    problems = []
    for path in sorted((PROJECT / 'nbs').rglob('*.ipynb')):
        if '.ipynb_checkpoints' in path.parts: continue
        try: nbformat.validate(nbformat.read(path, 4))
        except Exception as error: problems.append(f'{path.relative_to(PROJECT)}: not a valid notebook ({type(error).__name__})')
    return problems


def made_again() -> dict[str, bytes]:
    "The same files after exporting and cleaning a copy from which the modules were removed."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / 'project'
        shutil.copytree(PROJECT / 'nbs', copy / 'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
        (copy / 'whisper_nb').mkdir()
        for name in ('settings.ini', 'README.md'): shutil.copy(PROJECT / name, copy)
        shutil.copy(PROJECT / 'whisper_nb' / '__init__.py', copy / 'whisper_nb')
        for tool in ('nbdev_export', 'nbdev_clean'):
            subprocess.run([Path(sys.executable).with_name(tool)], cwd=copy, check=True, env={**os.environ, 'PYTHONPATH': str(copy)})
        return made(copy)


def out_of_step() -> list[str]:
    "Files that differ from what export and clean make."
    now, again = made(PROJECT), made_again()
    return [f'{name}: {"no notebook exports it" if name not in again else "not exported, or edited by hand" if name.endswith(".py") else "not clean"}'
            for name in sorted(now.keys() | again.keys()) if now.get(name) != again.get(name)]


def old_readme() -> list[str]:
    "Is README.md what nbs/index.ipynb says?"
    now, again = (PROJECT / 'README.md').read_text(encoding='utf-8'), readme()
    if now == again: return []
    return ['README.md: not in step with nbs/index.ipynb', *difflib.unified_diff(now.splitlines(), again.splitlines(), lineterm='', n=0)]


def old_result() -> list[str]:
    "Was the run that README.md shows made with the demo model that is in the package?"
    commit = read_model(DEMO, DEMO_DIR).commit[:8]
    return [] if commit in (PROJECT / 'README.md').read_text(encoding='utf-8') else [f'README.md: the run it shows was not made with the demo model of commit {commit}: execute nbs/index.ipynb']


if __name__ == '__main__':
    if problems := broken_notebooks() or out_of_step() + old_readme() + old_result():
        sys.exit('\n'.join(['❌ not in step:', *problems, '→ make notebooks']))
    print('✅ notebooks valid, clean and exported; README.md in step')
