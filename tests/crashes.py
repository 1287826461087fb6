"""Killed at any moment: `prepare`, `restore`, `publish`, `convert` and `pack` lose nothing, and the next run ends as if nothing had been.

Everything is imported once, in a process that then forks for each job: so the moments of the kills fall into the work. Each job has a process group
of its own, which gets the SIGKILL as a whole. After it, whatever has a final name must be the old version or the new one, byte for byte.
After three kills or so the same job runs undisturbed and must leave exactly what it leaves where nothing was ever killed, but for

- reports of runs that were killed after their work (`prepare-…json` and the like), and the files of locks (`.locks/`);
- a hidden `.….partial` younger than an hour, as another machine may be writing to it: they are made older before the last run."""
import hashlib
import itertools
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path

from tqdm.auto import tqdm

from whisper_nb.files import build_manifest, locked, read_manifest
from whisper_nb.verify import verify

NAME, TOY = 'demo-ct2-float16', 'toy-ct2-int8'
LIMIT = 120  # Seconds that an undisturbed run may take

# ---- What is killed. Each works in the current directory.


def do_prepare(**options):
    from whisper_nb.prepare import prepare
    prepare('demo', **options).require_ok()


def do_restore(url):
    from whisper_nb.restore import restore
    restore(url)


def do_publish(path):
    from whisper_nb.publish import publish
    publish(path, 'store', skip_test=True).require_ok()


def do_convert(quantizations, **options):
    from whisper_nb.convert import convert_all
    convert_all('models/demo', tuple(quantizations), **options)


def do_pack(format):
    from whisper_nb.pack import pack
    pack(f'models/{TOY}', format=format)


def no_exchange():
    "As on a system that cannot exchange two names in one step."
    import whisper_nb.files
    whisper_nb.files._exchange = lambda one, other: False


# ---- The process that forks

PRELOADED = ('whisper_nb.prepare', 'whisper_nb.publish', 'whisper_nb.restore', 'whisper_nb.convert', 'whisper_nb.mirror', 'filelock', 'isal.igzip_lib', 'numpy', 'safetensors', 'huggingface_hub', 'httpx2', 'psutil')
HEAVY = ('torch', 'transformers', 'ctranslate2', 'faster_whisper')


def work(job: dict, ready: int):
    "What a forked process does; it never returns."
    code = 1
    try:
        os.setsid()
        output = os.open(job['log'], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2): os.dup2(output, descriptor)
        os.chdir(job['place'])
        os.makedirs('tmp', exist_ok=True)
        os.environ['TMPDIR'], tempfile.tempdir = os.path.abspath('tmp'), None
        if job['hook']:
            module, name = job['hook'].split(':')
            getattr(import_module(module), name)()
        os.write(ready, b'!')
        globals()[f"do_{job['work']}"](**job['options'])
        code = 0
    except BaseException: traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end_group(group: int):
    "End what a job may have started, and wait a little for it."
    for _ in range(50):
        try: os.killpg(group, signal.SIGKILL)
        except ProcessLookupError: return
        time.sleep(0.01)


def serve(heavy: bool):
    "Read jobs from standard input, a line of JSON each; answer each with its exit code and its seconds."
    for name in PRELOADED + HEAVY * heavy:
        try: import_module(name)
        except ImportError: pass
    print('ready', flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        told, ready = os.pipe()
        if not (child := os.fork()): work(job, ready)
        os.close(ready)
        os.read(told, 1)
        os.close(told)
        start, handle = time.monotonic(), os.pidfd_open(child)
        if not select.select([handle], [], [], job['delay'])[0]: os.killpg(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        seconds = time.monotonic() - start
        os.close(handle)
        end_group(child)
        print(json.dumps([os.waitstatus_to_exitcode(status), seconds]), flush=True)


class Nursery:
    "Runs jobs, whole or up to a moment."
    def __init__(self, place: Path, heavy: bool):
        self.log = place / f'log-{id(self)}'
        self.process = subprocess.Popen([sys.executable, __file__, 'heavy' if heavy else 'light'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
                                        env=os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, sys.path)), TQDM_DISABLE='1'))
        assert self.process.stdout.readline() == 'ready\n'

    def __enter__(self): return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def run(self, subject, place: Path, delay: float = LIMIT) -> tuple[int, float]:
        "Exit code (-9: killed) and seconds."
        job = dict(work=subject.work, options=subject.options, hook=subject.hook, place=str(place), log=str(self.log), delay=delay)
        self.process.stdin.write(json.dumps(job) + '\n')
        self.process.stdin.flush()
        return tuple(json.loads(self.process.stdout.readline()))

    def whole(self, subject, place: Path) -> str:
        "Run a job undisturbed; what went wrong."
        code, seconds = self.run(subject, place)
        return '' if code == 0 else f'undisturbed it ended with {code} after {seconds:.1f} s: {self.said}'

    @property
    def said(self) -> str: return ' '.join(self.log.read_text(errors='replace').split())[-400:]


# ---- What may be seen

REPORT = re.compile(r'(prepare|publish)-[\w.-]+-\d{8}T\d{6}Z\.(json|html)')


def snapshot(place: Path) -> dict[str, str]:
    "Every path → SHA-256 (directories: ''); times and measured values aside."
    found = {}
    for path in sorted(place.rglob('*')):
        name = path.relative_to(place).as_posix()
        if '.locks' in path.parts or REPORT.fullmatch(path.name): continue
        if path.is_dir():
            if name not in ('tmp', 'models/.staging', 'models/.fresh/.staging'): found[f'{name}/'] = ''
        elif name.endswith('.fidelity.json'): found[name] = 'measured'
        elif path.name in ('latest.json', 'published.json'): found[name] = json.dumps({key: value for key, value in json.loads(path.read_bytes()).items() if key != 'published'})
        else: found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def units(found: dict[str, str]) -> dict[str, tuple]:
    "What has a final name: a model's directory as a whole, each other file by itself → its content."
    files = [name for name in found if not name.endswith(('/', '.partial')) and not any(part.startswith('.') for part in name.split('/')) and not name.startswith('tmp/')]
    def unit(name): return '/'.join(name.split('/')[:2]) if name.startswith('models/') else name
    return {key: tuple((name, found[name]) for name in group) for key, group in itertools.groupby(files, unit)}


def false_claims(place: Path):
    "Checksums and records that are not of the archives they name, told without the package's help."
    for algorithm in ('md5', 'sha256'):
        for path in place.rglob(f'*.{algorithm}'):
            if any(part.startswith('.') for part in path.relative_to(place).parts): continue
            archive = path.with_suffix('')
            if not archive.is_file() or path.read_text() != f'{hashlib.new(algorithm, archive.read_bytes()).hexdigest()}  {archive.name}\n': yield f'{path.name} is not that of its archive'
    for path in [*place.glob('store/*/latest.json'), *place.glob('store/*/*/published.json')]:
        said = json.loads(path.read_bytes())
        archive = place / 'store' / said['model'] / said['archive']
        if not archive.is_file() or hashlib.sha256(archive.read_bytes()).hexdigest() != said['sha256']: yield f'{path.name} names no whole archive'


def told(look, *arguments) -> str:
    "What a look finds; an error of it is a finding."
    try: return look(*arguments)
    except Exception as error: return f'{type(error).__name__}: {error}'


@dataclass
class Subject:
    "A job that is killed."
    title: str  # As the table shows it
    work: str  # A function `do_…` above
    options: dict
    starts: dict  # What is there at the beginning → a directory to copy
    hook: str = ''  # 'module:function' that a job's process calls first
    usual: float = 0  # Seconds it takes undisturbed
    ends: dict = field(default_factory=dict)  # What was there → what an undisturbed run leaves

    @property
    def step(self) -> str: return self.work

    def begin(self, start: str, place: Path):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.starts[start], place)

    @cached_property
    def allowed(self) -> dict[str, set]:
        "What each final name may stand for: the old content or the new one."
        found = {}
        for seen in [*self.ends.values(), *(snapshot(path) for path in self.starts.values())]:
            for name, content in units(seen).items(): found.setdefault(name, set()).add(content)
        return found

    def measure(self, nursery: Nursery, place: Path) -> str:
        "Run it undisturbed from each beginning; what went wrong."
        for start in self.starts:
            self.begin(start, place)
            code, seconds = nursery.run(self, place)
            if code: return f'undisturbed it ended with {code}: {nursery.said}'
            self.usual, self.ends[start] = max(self.usual, seconds), snapshot(place)
            for model in (place / 'models').glob('[!.]*'):
                if TOY != model.name and not verify(model).ok: return f'{model.name} does not verify'
        return next((f'from nothing and from an older one it does not come to the same: {name}' for name in self.ends[NOTHING] if self.ends[OLDER].get(name) != self.ends[NOTHING][name]), '')

    def fault(self, start: str, place: Path) -> str:
        "What is wrong with what a kill left; '' when nothing is."
        if self.hook:  # what the next run does first
            for path in list((place / 'models').glob('.*.aside')):
                with locked(path.with_name(path.name[1:-len('.aside')])): pass
        seen = units(snapshot(place))
        gone = [name for name in units(snapshot(self.starts[start])) if name not in seen and not name.endswith(('.md5', '.sha256'))]
        wrong = [f'{name} is neither the old one nor the new one' for name, content in seen.items() if content not in self.allowed.get(name, ())]
        return '; '.join([*(f'{name} is gone' for name in gone), *wrong, *false_claims(place)])

    def fault_at_the_end(self, start: str, nursery: Nursery, place: Path) -> str:
        "Run it again undisturbed; what is not as it must be."
        for path in place.rglob('.*.partial'): os.utime(path, (time.time() - 7200,) * 2)
        if problem := nursery.whole(self, place): return problem
        found, expected = snapshot(place), self.ends[start]
        return '; '.join(f"{name} is {'left over' if name not in expected else 'missing' if name not in found else 'another one'}" for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name))

    def kill(self, campaign, nursery: Nursery, place: Path, kills: int, seed: str):
        "Kill it so many times; count what came of each."
        if problem := self.measure(nursery, place): return campaign.count(self.step, 'undisturbed', 'lost', f'{self.title}: {problem}')
        generator, done, starts = random.Random(f'{seed} {self.title}'), 0, itertools.cycle(self.starts)
        with tqdm(total=kills, desc=self.title, unit=' kills', leave=False, disable=bool(os.environ.get('TQDM_DISABLE'))) as bar:
            start = next(starts)
            for turn in range(5 * kills):
                if done >= kills: return
                counted = self._three_kills(generator, nursery, place, start, min(3, kills - done))
                for fault, problem, moment in counted: campaign.count(self.step, fault, 'lost' if problem else 'recovered', problem and f'{self.title} ({seed}, turn {turn}, at {moment:.3f} of {self.usual:.3f} s): {problem}')
                done += len(counted)
                bar.update(len(counted))
                if counted: start = next(starts)

    def _three_kills(self, generator, nursery: Nursery, place: Path, start: str, most: int) -> list:
        "(what was there, what went wrong, when) of each kill; the last one answers for the end."
        counted = []
        self.begin(start, place)
        while len(counted) < most and not any(problem for _, problem, _ in counted):
            moment = generator.uniform(0, 1.2 * self.usual)
            code, _ = nursery.run(self, place, moment)
            problem = told(self.fault, start, place)
            if code not in (0, -9): problem = f'it ended with {code}: {nursery.said}'
            if code == 0 and not problem: break  # it was quicker
            counted.append((f"killed, {f'leftovers of a former kill there' if counted else start}", problem, moment))
        if counted and not counted[-1][1]: counted[-1] = (counted[-1][0], told(self.fault_at_the_end, start, nursery, place), counted[-1][2])
        return counted


# ---- What they start from

NOTHING, OLDER = 'nothing there', 'an older one there'


def older_demo(model: Path, place: Path) -> Path:
    "The demo as it might have been in another release: another commit, a space more in one file."
    shutil.copytree(model, place)
    (place / 'preprocessor_config.json').write_bytes((place / 'preprocessor_config.json').read_bytes() + b' ')
    old = read_manifest(place)
    made = build_manifest(place, old.name, old.format, old.source | dict(commit='0' * 40))
    (place / 'manifest.json').write_text(made.to_json())
    return place


def copied(target: Path, **parts) -> Path:
    "A directory of copies: name with __ for / → what is copied there."
    target.mkdir(parents=True)
    for name, source in parts.items():
        destination = target / name.replace('__', '/')
        if source.is_dir(): shutil.copytree(source, destination, dirs_exist_ok=True, ignore=shutil.ignore_patterns('.locks', '*-*Z.json', '*-*Z.html'))
        else:
            destination.mkdir(parents=True, exist_ok=True)
            for ending in ('', '.md5', '.sha256'): shutil.copy(f'{source}{ending}', destination)
    return target


class Beginnings:
    "Directories to start from, made once."
    def __init__(self, place: Path, nursery: Nursery, full: bool):
        from test_pack import make_model
        from test_restore import put
        self.place, self.made = place, itertools.count()
        quick = dict(skip_fidelity=True, skip_test=True)
        self.new, self.old = place / 'new', place / 'old'
        self.new.mkdir(parents=True)
        self._do(nursery, 'prepare', self.new, **quick)
        older_demo(self.new / 'models' / 'demo', self.old / 'models' / 'demo')
        self._do(nursery, 'convert', self.old, quantizations=['float16', 'int8'])
        if full: self._do(nursery, 'convert', self.old, quantizations=['float16'], format='openai')
        self.toys = [make_model(place / name / TOY, 24_000_000, seed) for seed, name in enumerate(('old toy', 'new toy'), 1)]
        here = Path.cwd()
        os.chdir(place)
        try:
            for format in ('tar.gz', 'tar.zst', 'tar')[:3 if full else 1]:
                for each in self.toys: put(each, f'{each.parent.name} {format}', f'{each.parent.name} packed', format)
                put(self.old / 'models' / NAME, f'old {format}', 'old packed', format)
        finally: os.chdir(here)

    def _do(self, nursery, work, place, **options):
        if problem := nursery.whole(Subject('', work, options, {}), place): raise AssertionError(problem)

    def _place(self, **parts) -> Path: return copied(self.place / 'starts' / str(next(self.made)), **parts)

    def prepare(self, title='prepare', **options) -> Subject:
        old = self._place(models__demo=self.old / 'models' / 'demo', **{f'models__{NAME}': self.old / 'models' / NAME}, outputs=self.place / 'old packed' / f'{NAME}.tar.gz')
        return Subject(title, 'prepare', options, {OLDER: old, NOTHING: self._place()})

    def restore(self, title='restore', format='tar.gz', hook='') -> Subject:
        new = dict(store=self.place / f'new toy {format}')
        return Subject(title, 'restore', dict(url=f'store/{TOY}'), {OLDER: self._place(**new, **{f'models__{TOY}': self.toys[0]}), NOTHING: self._place(**new)}, hook)

    def publish(self, title='publish', packed=False) -> Subject:
        given = dict(given=self.new / 'outputs' / f'{NAME}.tar.gz') if packed else {f'models__{NAME}': self.new / 'models' / NAME}
        path = f'given/{NAME}.tar.gz' if packed else f'models/{NAME}'
        return Subject(title, 'publish', dict(path=path), {OLDER: self._place(**given, store=self.place / 'old tar.gz'), NOTHING: self._place(**given)})

    def convert(self, title='convert', made=(f'{NAME}', 'demo-ct2-int8'), hook='', **options) -> Subject:
        source = dict(models__demo=self.new / 'models' / 'demo')
        old = {f'models__{name}': self.old / 'models' / name for name in made}
        return Subject(title, 'convert', dict(quantizations=[name.rsplit('-', 1)[1] for name in made], **options), {OLDER: self._place(**source, **old), NOTHING: self._place(**source)}, hook)

    def pack(self, title='pack', format='tar.gz') -> Subject:
        new = {f'models__{TOY}': self.toys[1]}
        return Subject(title, 'pack', dict(format=format), {OLDER: self._place(**new, outputs=self.place / 'old toy packed' / f'{TOY}.{format}'), NOTHING: self._place(**new)})


QUICK = dict(skip_fidelity=True, skip_test=True)


def plan(begin: Beginnings, size: str) -> list[tuple]:
    "What is killed: step, what makes the subject, how often."
    if size == 'short':
        return [('prepare', lambda: begin.prepare('prepare, afresh', fresh=True, **QUICK), 3), ('restore', begin.restore, 3), ('publish', lambda: begin.publish('publish, an archive', True), 3),
            ('convert', begin.convert, 3), ('pack', begin.pack, 3)]
    alone = dict(hook='crashes:no_exchange')
    return [
        ('prepare', lambda: begin.prepare('prepare, all steps'), 12), ('prepare', lambda: begin.prepare(**QUICK), 20), ('prepare', lambda: begin.prepare('prepare, afresh', fresh=True, **QUICK), 20),
        ('restore', begin.restore, 24), ('restore', lambda: begin.restore('restore, tar.zst', 'tar.zst'), 12), ('restore', lambda: begin.restore('restore, no exchange of names', **alone), 12),
        ('publish', begin.publish, 24), ('publish', lambda: begin.publish('publish, an archive', True), 24),
        ('convert', begin.convert, 20), ('convert', lambda: begin.convert('convert, no exchange of names', **alone), 12),
        ('convert', lambda: begin.convert('convert, for openai-whisper', ('demo-openai-float16',), format='openai'), 16),
        ('pack', begin.pack, 20), ('pack', lambda: begin.pack('pack, tar.zst', 'tar.zst'), 16), ('pack', lambda: begin.pack('pack, tar', 'tar'), 12)]


def run(campaign, work: Path, size: str, steps=('prepare', 'restore', 'publish', 'convert', 'pack'), hook: str = ''):
    "The campaign; with a `hook` of a test's own, to see that it can fail."
    full, work = size == 'full', Path(work).resolve()
    with ExitStack() as stack:
        nurseries = [stack.enter_context(Nursery(work, full)) for _ in range(2 if full else 1)]
        begin = Beginnings(work / 'begin', nurseries[0], full)
        waiting = iter([(make(), kills) for step, make, kills in plan(begin, size) if step in steps])
        def some(nursery):
            for subject, kills in waiting:
                subject.hook = hook or subject.hook
                subject.kill(campaign, nursery, work / subject.title, kills, size)
        with ThreadPoolExecutor(len(nurseries)) as pool: list(pool.map(some, nurseries))


if __name__ == '__main__': serve(sys.argv[1] == 'heavy')
