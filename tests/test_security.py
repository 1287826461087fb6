"""SECURITY.md promises nothing that no test shows."""
import re

from conftest import PROJECT

TEXT = (PROJECT / 'SECURITY.md').read_text(encoding='utf-8')
PROMISES, OTHER = TEXT.split('## What is promised')[1].split('\n## What is not promised')


def rows(text):
    "The rows of the tables: (promise, tests)."
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line.startswith('| ') and not line.startswith('| promise')]
    assert all(len(row) == 2 for row in cells), cells
    return cells


def test_every_promise_names_tests_that_exist():
    found = rows(PROMISES)
    assert len(found) > 20
    for promise, shown_by in found:
        names = re.findall(r'`tests/(test_\w+\.py)::(test_\w+)`', shown_by)
        assert names and len(names) == shown_by.count('`') / 2 == shown_by.count('::'), promise
        for file, name in names: assert re.search(rf'^def {name}\(', (PROJECT / 'tests' / file).read_text(encoding='utf-8'), re.M), f'{promise}: tests/{file} has no {name}'


def test_against_everybody_there_are_promises():
    threats = re.findall(r'^\| \*\*(.+?)\*\*', TEXT.split('## From whom')[1].split('## What is promised')[0], re.M)
    sections = dict(re.findall(r'^### (.+)\n((?:(?!^###).*\n?)*)', PROMISES, re.M))
    assert [threat.casefold() for threat in threats] == [section.casefold() for section in sections] and len(threats) == 5
    assert all(rows(section) for section in sections.values())


def test_what_is_not_promised_is_said():
    for words in ('No signature', 'older signed version', 'compromised machine', 'Side channels', 'demo model', 'Windows and macOS', 'private key'): assert words.casefold() in OTHER.casefold(), words
    assert 'advisory' in TEXT and '@' not in TEXT and 'mailto' not in TEXT


def test_commands_and_options_are_real():
    from whisper_nb.cli import app
    import typer
    commands = typer.main.get_command(app).commands
    for name in re.findall(r'`whisper-nb ([\w-]+)', TEXT): assert name in commands, name
    options = {option for command in commands.values() for parameter in command.params for option in parameter.opts}
    for option in re.findall(r'`(--[\w-]+)`', TEXT): assert option in options, option
