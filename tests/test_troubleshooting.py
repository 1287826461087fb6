"""The page of all messages: in step with the code, complete, and each with something to do."""
import ast
import errno
import re
from pathlib import Path

import nbformat
import pytest

import whisper_nb
from whisper_nb.errors import explain
from whisper_nb.troubleshooting import TOPICS, as_table, by_topic, find, messages

from conftest import PROJECT

PAGE = PROJECT / 'nbs' / 'explanations' / 'troubleshooting.ipynb'
MAKE_AGAIN = 'make it again: .venv/bin/jupyter execute --inplace nbs/explanations/troubleshooting.ipynb && .venv/bin/nbdev_clean --fname nbs/explanations/troubleshooting.ipynb'
ACTIONS = set('''accept add ask bring call check choose close compare convert copy correct create cut download fetch find free get give install leave lower make measure mend merge mix move name open prepare publish put
    raise read remove rename report restore run save see set share sign stop trust try turn unpack unset update use verify wait write'''.split())
COMMAND = re.compile(r"whisper-nb |pip install|openssl |gcloud |make \w|git lfs|aws |rm ")


def test_the_page_is_in_step_with_the_code():
    cells = {cell.source: cell for cell in nbformat.read(PAGE, 4).cells if cell.cell_type == 'code'}
    for topic in TOPICS:
        kept = cells[f"Markdown(as_table('{topic}'))"].outputs[0]['data']['text/markdown']
        new, old = ([line for line in text.splitlines() if line not in other.splitlines()] for text, other in ((as_table(topic), kept), (kept, as_table(topic))))
        assert kept == as_table(topic), f'{topic}: new {new[:3]}, no more {old[:3]}; {MAKE_AGAIN}'


def test_the_ten_most_likely_ones_are_messages():
    sources = '\n'.join(cell.source for cell in nbformat.read(PAGE, 4).cells if cell.cell_type == 'code')
    lines = [ast.literal_eval(text) for text in re.findall(r'^find\((.+)\)$', sources, re.M)]
    assert len(lines) == 11 and all(map(find, lines)), [line for line in lines if not find(line)]


def test_every_message_is_in_a_topic():
    assert sum(map(len, by_topic().values())) == len(messages()) > 400
    here = {path.stem for path in Path(whisper_nb.__file__).parent.glob('*.py')}
    assert not {module for modules in TOPICS.values() for module in modules} - here
    assert {each.module for each in by_topic()[[*TOPICS][-1]]} <= {'errors', 'files'}, 'name the new module in TOPICS'


def test_every_message_says_what_to_do():
    poor = [f'{each.module}: {each}' for each in messages() if not (COMMAND.search(each.advice) or ACTIONS & set(re.findall('[a-z]+', each.advice.lower())) or 'did you mean' in each.advice)]
    assert not poor, '\n'.join(poor)
    assert not [each for each in messages() if '\n' in each.what + each.advice]


def test_nothing_is_left_out():
    "Looked for in another way: the first words of every line that makes an error stand on the page."
    text = '\n'.join(each.what for each in messages())
    for path in Path(whisper_nb.__file__).parent.glob('*.py'):
        for words in re.findall(r"\b(?:Request|Check|Step|Format|Signature|Passing|Changed|Refused)Error\(f?['\"]+([^'\"{}\\]{12,})", path.read_text(encoding='utf-8')): assert words.strip() in text, (path.name, words)


def raised(function, *arguments, **options):
    "The error of a call, in two lines, as the command shows it."
    with pytest.raises(Exception) as error: function(*arguments, **options)
    return explain(error.value)


def test_real_errors_are_found(tmp_path):
    from whisper_nb.addresses import parse_address
    from whisper_nb.archive import check_archive
    from whisper_nb.audio import load_audio
    from whisper_nb.caches import choose_leftovers
    from whisper_nb.convert import convert
    from whisper_nb.files import require_space
    from whisper_nb.models import parse_quantizations, resolve
    from whisper_nb.pack import pack
    from whisper_nb.runs import run_notebook
    from whisper_nb.signing import sign
    from whisper_nb.unpack import unpack
    from whisper_nb.verify import require_verified, verify
    (tmp_path / 'x.tar.gz').write_bytes(b'no archive')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'noise.wav').write_bytes(bytes(100))
    (tmp_path / 'foreign').mkdir()
    (tmp_path / 'foreign/ggml-tiny.bin').touch()
    found = {
        'models': [raised(resolve, 'larg-v3'), raised(parse_quantizations, 'int7')],
        'addresses': [raised(parse_address, 's3://a:b@bucket/x'), raised(parse_address, 'ftp://x/y')],
        'compression': [raised(check_archive, tmp_path / 'x.tar.gz'), raised(unpack, tmp_path / 'x.zip')],
        'archive': [raised(unpack, tmp_path / 'none.tar.gz')],
        'pack': [raised(pack, tmp_path / 'empty'), raised(pack, tmp_path / 'nothing')],
        'verify': [raised(verify, tmp_path / 'nothing'), raised(require_verified, tmp_path / 'empty')],
        'formats': [raised(require_verified, tmp_path / 'foreign')],
        'audio': [raised(load_audio, tmp_path / 'noise.wav')],
        'files': [raised(require_space, tmp_path, 10**18, 'the conversion')],
        'runs': [raised(run_notebook, tmp_path / 'x.ipynb')],
        'signing': [raised(sign, tmp_path / 'empty', tmp_path / 'key')],
        'caches': [raised(choose_leftovers, (), ['x'])],
        'convert': [raised(convert, tmp_path / 'empty', 'int8,float16')],
    }
    for module, problems in found.items():
        for problem in problems:
            message = find(f'❌ {problem}')
            assert message and (message.module == module or module in ('pack', 'signing', 'verify', 'formats', 'convert')), (module, problem, message)
            assert message.exit_code == problem.exit_code or module == 'formats', (problem, message)  # another tool's model: found where it was asked for, or by a check
    assert find(str(explain(OSError(errno.ENOSPC, 'No space left on device', 'models/x')))).what.startswith('no space left')
    assert find('❌ download      0.3 s           the Hub asks for fewer requests (HTTP 429)\n   → wait a little').kind == 'HfHubHTTPError'
    assert find(str(explain(ZeroDivisionError('division by zero')))).kind == 'UnexpectedError'


def test_other_programs_errors_are_not_found():
    for text in ('', '\n', 'Segmentation fault (core dumped)', 'ImportError: No module named x', 'make: *** [all] Error 2', '→ run the same command again', 'x' * 100_000, '‹name›', "'" * 500): assert find(text) is None, text[:50]
