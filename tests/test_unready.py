"""Machines that are not ready: full and read-only disks, little memory, a wrong clock, odd paths, no home, two runs at once.

Each condition is a real one. What needs mounts happens in a mount namespace of its own; where a system forbids that, the test says so and is left out.
Nothing here watches files, so a system without inotify is one of the conditions and no problem."""
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from conftest import COMMAND, PROJECT
from crashes import NAME, older_demo, snapshot
from test_cli import two_lines
from test_pack import contents, visible

from whisper_nb.audio import default_clip
from whisper_nb.convert import convert
from whisper_nb.errors import explain
from whisper_nb.files import locked
from whisper_nb.hub import download
from whisper_nb.mirror import serving
from whisper_nb.offline import offline_test
from whisper_nb.pack import pack
from whisper_nb.prepare import prepare
from whisper_nb.publish import publish
from whisper_nb.restore import restore
from whisper_nb.unpack import unpack
from whisper_nb.verify import verify

QUICK = dict(skip_fidelity=True, skip_test=True)
NAMESPACE = ['unshare', '--user', '--mount', '--map-root-user']


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    "A directory with the prepared demo in models/ and outputs/, an older version of it in old/, published in store/."
    directory = tmp_path_factory.mktemp('prepared')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setenv('TQDM_DISABLE', '1')
        prepare('demo', **QUICK).require_ok()
        older_demo(Path('models/demo'), Path('old/demo'))
        convert('old/demo')
        publish(f'models/{NAME}', 'store', skip_test=True, outputs_dir='.').require_ok()
    return directory


@pytest.fixture
def here(prepared, tmp_path):
    "A copy of it, which is the current directory."
    return Path(shutil.copytree(prepared, tmp_path, dirs_exist_ok=True))


@pytest.fixture
def shell(tmp_path):
    "A shell in which a script can mount what it likes; its words are $1, $2, …"
    if subprocess.run([*NAMESPACE, 'mount', '-t', 'tmpfs', 'none', tmp_path], capture_output=True).returncode: pytest.skip('this system allows no mounts')
    def run(script, *words, **environment):
        return subprocess.run([*NAMESPACE, 'sh', '-ec', script, 'sh', *map(str, words)], capture_output=True, text=True, env=os.environ | environment, timeout=300)
    return run


def inside(name: str) -> str:
    "Words of a shell that call a function of this file."
    return f'exec {shlex.quote(sys.executable)} {shlex.quote(__file__)} {name}'


def problem_of(work, *arguments, **options):
    "The two lines for what goes wrong."
    try: work(*arguments, **options)
    except Exception as error: found = explain(error)
    else: raise AssertionError(f'nothing went wrong: {work.__name__} {arguments}')
    assert found.what and found.advice and 'bug' not in found.advice, found
    return found


# ---- Disks


class Disk:
    "Becomes full the moment a file of a certain name is opened."
    def __init__(self):
        self.wanted = None
        sys.addaudithook(self.see)

    def see(self, event, arguments):
        if event != 'open' or self.wanted is None or not re.search(self.wanted, str(arguments[0])): return
        self.wanted = None
        with open('filler', 'wb', buffering=0) as file, suppress(OSError):
            while True: file.write(bytes(1 << 16))


def full_disk():
    "In a directory on a small disk: each step meets a full disk in its middle, and goes through when there is room."
    disk = Disk()
    steps = dict(
        prepare=(lambda: prepare('demo', fresh=True, **QUICK).require_ok(), r'outputs/.fresh/.*\.partial$'),
        convert=(lambda: convert('models/demo', fresh=True), r'\.staging/.*/model\.bin$'),
        pack=(lambda: pack(f'models/{NAME}', fresh=True), r'\.partial$'),
        restore=(lambda: restore(f'store/{NAME}', 'restored'), r'\.staging/.*/model\.bin$'),
        publish=(lambda: publish(f'models/{NAME}', 'other', skip_test=True).require_ok(), r'other/.*\.partial$'))
    Path('other').mkdir()
    for name, (work, wanted) in steps.items():
        before, disk.wanted = snapshot(Path.cwd()), wanted
        problem = problem_of(work)
        assert disk.wanted is None and problem.exit_code == 1 and 'space' in problem.what, (name, problem)
        Path('filler').unlink()
        after = {path: digest for path, digest in snapshot(Path.cwd()).items() if not path.endswith('/')}
        assert after == {path: digest for path, digest in before.items() if not path.endswith('/')}, (name, sorted(after.items() ^ before.items()))
        work()
        for model in (*Path('models').glob('[!.]*'), *Path('restored').glob('[!.]*')): assert verify(model).ok, (name, model)
        print(name, problem)


def test_full_disk_in_the_middle(shell, here):
    "What was there stays, nothing half-made stays, and with room the same command goes through."
    shutil.rmtree(f'models/{NAME}')
    shutil.copytree(f'old/{NAME}', f'models/{NAME}')
    shutil.copytree(f'old/{NAME}', f'restored/{NAME}')
    done = shell(f'mkdir disk; mount -t tmpfs -o size=48m none disk; cp -r models outputs store restored disk; cd disk; {inside("full_disk")}')
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines() if ' ' in line and not line.startswith('→')] == ['prepare', 'convert', 'pack', 'restore', 'publish'], done.stdout


def test_no_room_in_the_list_of_files(shell, here):
    "A disk with free bytes and no free inodes: each new file is refused."
    done = shell('mkdir disk; mount -t tmpfs -o size=48m,nr_inodes=99 none disk; cp -r models disk; cd disk; number=0; while touch file$number 2> /dev/null; do number=$((number + 1)); done; rm file1 file2 file3; "$@"',
                 COMMAND, 'convert', 'models/demo', '--quantization', 'int8')
    two_lines(done, 1)


def read_only():
    "In a directory whose models/, outputs/ and store/ are read-only."
    before = snapshot(Path.cwd())
    for work, arguments, options in (
            (prepare, ['demo'], {}), (convert, ['models/demo', 'int8'], {}), (pack, [f'models/{NAME}', 'outputs'], dict(fresh=True)), (restore, [f'store/{NAME}', 'models'], {}),
            (unpack, [f'outputs/{NAME}.tar.gz', 'models'], {}), (publish, [f'models/{NAME}', 'elsewhere'], dict(skip_test=True))):
        problem = problem_of(work, *arguments, **options)
        assert problem.exit_code == 1 and re.search("cannot write to|not allowed to write", problem.what), (work.__name__, problem)
    report = publish(f'old/{NAME}', 'store', skip_test=True, outputs_dir='.')
    assert not report.ok and 'not allowed to write' in report.failures[0].detail, report
    for name in ('demo', NAME): assert verify(Path('models', name)).ok
    found = offline_test(Path('models', NAME))
    assert found.ok and default_clip().text in found.text.lower()
    changed = {path.split('/')[0] for path in (snapshot(Path.cwd()).items() ^ before.items()) for path in path[:1]}
    assert not changed & {'models', 'outputs', 'store'}, changed


def test_read_only_directories(shell, here):
    "Whatever has to write says where it cannot; whatever only reads, works."
    done = shell(f'for name in models outputs store; do mount --bind $name $name; mount -o remount,ro,bind $name; done; {inside("read_only")}')
    assert done.returncode == 0, done.stdout + done.stderr


# ---- What the system lacks

BARE = '''
mount --bind "$1" "$2"; cd "$2"
for place in $3; do mount -t tmpfs -o size=4k none $place; { cat /dev/zero > $place/full; } 2> /dev/null || true; done
mount -t tmpfs -o ro none /dev/shm
echo 0 > /proc/sys/user/max_inotify_instances || true
shift 3; exec "$@"
'''


def heard(done):
    "A run of all steps that went well, or two lines."
    assert done.returncode == 0, done.stderr
    assert default_clip().text in done.stderr.lower() and verify(Path('models', NAME)).ok
    assert not list(Path('models/.staging').glob('*'))


def test_no_room_in_tmp_no_shared_memory_no_inotify_no_home(shell, tmp_path):
    "The whole job, offline test and comparison included, on a machine with nothing but its own directory."
    own = [PROJECT, Path(sys.prefix), Path(sys.base_prefix)]
    other = next(place for place in ('/mnt', '/srv', '/media', '/opt') if Path(place).is_dir() and not any(path.is_relative_to(place) for path in own))
    taken = ' '.join(place for place in ('/tmp', '/var/tmp') if Path(place).is_dir() and not any(path.is_relative_to(place) for path in own))
    probe = shell(BARE, tmp_path, other, taken, sys.executable, '-c', 'import ctypes; print(ctypes.CDLL(None).inotify_init())')
    if probe.stdout.strip() != '-1': print('inotify stays as it is:', probe)
    environment = dict(HOME='/proc', TMPDIR='/tmp')
    heard(shell(BARE, tmp_path, other, taken, COMMAND, 'prepare', 'demo', **environment))
    assert visible(Path('outputs'))


def test_a_user_without_a_name_a_home_or_utf8(tmp_path):
    "As in a container that runs under any number, with the locale of the 1970s."
    user = ['unshare', '--user', '--map-user=54321', '--map-group=54321']
    if subprocess.run([*user, 'true'], capture_output=True).returncode: pytest.skip('this system allows no such users')
    kept = {name: value for name, value in os.environ.items() if name not in ('HOME', 'USER', 'LOGNAME', 'HF_HOME') and not name.startswith(('LANG', 'LC_', 'XDG_'))}
    environment = kept | dict(LC_ALL='C', LANG='C', PYTHONCOERCECLOCALE='0', PYTHONUTF8='0')
    place = tmp_path / 'ein Ort für 모델'
    place.mkdir()
    def run(*words): return subprocess.run([*user, COMMAND, *map(str, words)], cwd=place, capture_output=True, text=True, errors='replace', env=environment, timeout=300)
    done = run('prepare', 'demo', '--skip-fidelity')
    assert done.returncode == 0, done.stderr
    found = run('verify', f'models/{NAME}')
    assert found.returncode == 0 and verify(place / 'models' / NAME).ok, found.stderr
    said = run('transcribe', default_clip().path, '--model', f'models/{NAME}', '--language', 'en')
    assert said.returncode == 0 and default_clip().text in said.stdout.lower(), said.stderr
    refused = run('prepare', '한국어')
    assert refused.returncode == 2 and refused.stderr.startswith('\\u274c ') and '\n\\u2192 ' in refused.stderr, refused.stderr


@pytest.mark.parametrize('megabytes', [200, 600, 950])
def test_little_memory(tmp_path, megabytes):
    "A limit on the address space: it goes through, or says that memory is short; it neither hangs nor shows a traceback."
    done = subprocess.run(['sh', '-c', f'ulimit -v {megabytes * 1000}; exec "$@"', 'sh', COMMAND, 'prepare', 'demo', '--skip-fidelity'], capture_output=True, text=True, timeout=120)
    assert done.returncode in (0, 1) and 'Traceback' not in done.stderr and 'this is a bug' not in done.stderr, done.stderr
    if done.returncode: assert 'memory' in ' '.join(two_lines(done, 1)), done.stderr
    for model in Path('models').glob('[!.]*'): assert verify(model).ok


# ---- Two at once


def test_two_at_once(here):
    "The second one says that it waits; both end right."
    shutil.rmtree('store')
    before = contents(Path('models', NAME))
    jobs = {Path('fresh/models/demo (prepare)'): ['prepare', 'demo', '--skip-fidelity', '--skip-test', '--models-dir', 'fresh/models', '--outputs-dir', 'fresh/outputs'],
        Path('outputs', f'{NAME} (publish)'): ['publish', f'models/{NAME}', 'store', '--skip-test'],
        Path('packed', f'{NAME}.tar.gz'): ['pack', f'models/{NAME}', '--outputs-dir', 'packed']}
    holders = [locked(final) for final in jobs]
    for holder in holders: holder.__enter__()
    try:
        runs = [subprocess.Popen([COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for words in jobs.values() for _ in range(2)]
        for each in runs: next(line for line in each.stderr if 'waiting for another run' in line)
    finally:
        for holder in reversed(holders): holder.__exit__(None, None, None)
    for each in runs:
        errors = each.communicate(timeout=120)[1]
        assert each.returncode == 0 and 'Traceback' not in errors, errors
    assert verify(Path('fresh/models', NAME)).ok and contents(Path('fresh/models', NAME)) == before
    assert contents(unpack(f'packed/{NAME}.tar.gz', 'one')) == contents(restore(f'store/{NAME}', 'two').path) == before
    left = [path for path in here.rglob('*') if path.name.endswith('.partial') or path.parent.name in ('.staging', '.publish')]
    assert not left, left


# ---- A clock that jumps

CLOCK = r'''
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
#include <sys/time.h>
static long jump(void) { static unsigned calls; return ((long)(calls++ / 7 % 3) - 1) * 31536000L; } /* a year back, right, a year ahead, and over again */
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(clock, now);
    if (!status && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += jump();
    return status;
}
int gettimeofday(struct timeval *now, void *zone) { struct timespec found; clock_gettime(CLOCK_REALTIME, &found); now->tv_sec = found.tv_sec; now->tv_usec = found.tv_nsec / 1000; return 0; }
time_t time(time_t *out) { struct timespec found; clock_gettime(CLOCK_REALTIME, &found); if (out) *out = found.tv_sec; return found.tv_sec; }
'''


def odd_clock():
    "With a clock that jumps by a year, back and forth, all the time."
    seen = [time.time() for _ in range(40)]
    assert max(seen) - min(seen) > 60_000_000, 'the clock does not jump'
    def statuses(report):
        report.require_ok()
        return [step.status for step in report.steps]
    first = prepare('demo', **QUICK)
    assert statuses(first).count('done') == 4 and 0 < first.seconds < 250 and all(0 <= step.seconds < 250 for step in first.steps if step.seconds is not None)
    for times in (None, time.time() + 10**8, time.time() - 10**9):  # of all files: as they are, in three years, thirty years ago
        for path in (path for path in Path.cwd().rglob('*') if times and path.is_file()): os.utime(path, (times, times))
        assert statuses(prepare('demo', **QUICK)) == ['reused', 'done', 'reused', 'skipped', 'reused', 'skipped']
        assert statuses(publish(f'models/{NAME}', 'store', skip_test=True))[-3:] == (['done'] * 3 if times is None else ['reused'] * 3)
        assert restore(f'store/{NAME}', 'restored').reused == (times is not None)
        assert pack(f'models/{NAME}').reused and verify(Path('restored', NAME)).ok
    with serving({'someone/demo': Path('models/demo')}) as endpoint: assert contents(download('someone/demo', models_dir='got', endpoint=endpoint, token=False).path).keys()
    print('right')


def test_a_clock_that_jumps(tmp_path):
    compiler = shutil.which('cc') or shutil.which('gcc')
    if compiler is None or sys.platform != 'linux': pytest.skip('there is no C compiler here to bend the clock with')
    (tmp_path / 'clock.c').write_text(CLOCK)
    subprocess.run([compiler, '-shared', '-fPIC', '-O1', '-o', 'clock.so', 'clock.c', '-ldl'], check=True)
    environment = {name: value for name, value in os.environ.items() if name != 'TQDM_DISABLE'} | dict(LD_PRELOAD=str(tmp_path / 'clock.so'))
    (tmp_path / 'work').mkdir()
    done = subprocess.run([sys.executable, __file__, 'odd_clock'], cwd='work', capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == 'right', done.stderr


# ---- Odd paths

ODD = ['-dash/two  spaces/한국어', '--models-dir/e\u0301 combined/$HOME `x` "y" \'z\' *?[a]', 'a#b%20c&d=e;f/n\nl', 'very long ' + 'x' * 240]


def test_odd_paths(prepared, tmp_path, monkeypatch):
    "As directories to work in, and as names of the directories that are given."
    for number, name in enumerate(ODD):
        (tmp_path / f'{number}' / name).mkdir(parents=True)
        monkeypatch.chdir(tmp_path / f'{number}')
        model = Path(name, 'models', NAME)
        shutil.copytree(prepared / 'models' / 'demo', Path(name, 'models', 'demo'))
        assert convert(Path(name, 'models', 'demo')).path == model and verify(model).ok
        archive = pack(model, Path(name, 'outputs')).path
        assert contents(unpack(archive, Path(name, 'back'))) == contents(model)
        publish(str(model), f'{name}/store', skip_test=True, outputs_dir=f'{name}/outputs').require_ok()
        assert contents(restore(f'{name}/store/{NAME}', f'{name}/restored').path) == contents(model)


def test_odd_paths_from_outside(tmp_path, whisper_nb, monkeypatch):
    "One with all of it, through the command, with the offline test."
    place = tmp_path / '-a  b\n한국어 e\u0301' / '$x "y" *'
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    heard(whisper_nb('prepare', 'demo', '--skip-fidelity', '--outputs-dir', '-out'))
    assert whisper_nb('verify', f'models/{NAME}').returncode == 0 and whisper_nb('unpack', '--', f'-out/{NAME}.tar.gz', '-back').returncode == 0
    assert contents(Path('-back', NAME)) == contents(Path('models', NAME))


def test_names_that_cannot_be(prepared, tmp_path, whisper_nb):
    "Of models: refused in two lines, before or after work, and nothing breaks."
    for name in ('한국어', 'a\nb', 'x' * 250, '-x', 'two words'):
        shutil.copytree(prepared / 'models' / 'demo', tmp_path / 'given' / name)
        try: prepare(str(tmp_path / 'given' / name), **QUICK).require_ok()
        except Exception as error:
            problem = explain(error)
            assert problem.advice and 'bug' not in problem.advice and name != 'two words', (name, problem)
    deep = Path(*['d' * 250] * 17)  # longer than a path may be
    for words in (('prepare', 'demo', '--models-dir', deep), ('verify', deep), ('restore', deep)):
        done = whisper_nb(*words)
        assert done.returncode in (1, 2) and 'Traceback' not in done.stderr and 'this is a bug' not in done.stderr and '\n→ ' in done.stderr, done.stderr


def test_models_is_a_symbolic_link(here):
    shutil.move('models', 'another disk')
    Path('models').symlink_to('another disk')
    before = contents(Path('another disk', NAME))
    assert prepare('demo', **QUICK).steps[0].status == 'reused'
    prepare('demo', fresh=True, **QUICK).require_ok()
    assert contents(convert('models/demo', fresh=True).path) == before and verify(Path('models', NAME)).ok
    (Path('models', NAME) / 'model.bin').write_bytes(b'spoiled')
    assert contents(restore(f'store/{NAME}').path) == contents(unpack(pack(f'models/{NAME}').path)) == before
    assert Path('models').is_symlink() and visible(Path('another disk')) == ['demo', NAME]
    shutil.move(f'models/{NAME}', 'moved')
    Path('models', NAME).symlink_to('../moved')  # the model itself: whose it is nobody knows, so it is not replaced
    assert problem_of(restore, f'store/{NAME}').exit_code == 2 and contents(Path('moved')) == before
    shutil.rmtree('another disk')
    assert problem_of(prepare, 'demo').exit_code == 1  # it leads nowhere


if __name__ == '__main__': globals()[sys.argv[1]]()
