"""What all tests share: no network but loopback, no bars in the logs, nothing written to the checkout."""
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # threads that spin while they wait would slow each other down on few cores

PROJECT = Path(__file__).resolve().parent.parent
COMMAND = Path(sys.executable).with_name('whisper-nb')


def listen_to_ctrl_c():
    "For `preexec_fn`: a shell's background jobs, and so their children, start with SIGINT ignored."
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def own_directory(tmp_path, monkeypatch):
    "Each test starts in an empty directory, with no caches and no tokens of the machine."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HF_HOME', str(tmp_path / '.hf-home'))
    for name in ('HF_TOKEN', 'HF_ENDPOINT', 'HF_HUB_OFFLINE', 'WHISPER_NB_DEBUG'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('TQDM_DISABLE', '1')


@pytest.fixture
def whisper_nb():
    "Run the command as a user does: words → exit code, standard output, standard error."
    def run(*words, **environment):
        return subprocess.run([str(COMMAND), *map(str, words)], capture_output=True, text=True, env={**os.environ, **environment})
    return run



@pytest.fixture(scope='session')
def tiny(tmp_path_factory):
    "A random Whisper in all formats, by backend."
    from checkpoints import make_checkpoint
    from whisper_nb.convert import convert
    source = make_checkpoint(tmp_path_factory.mktemp('models') / 'tiny', inner=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TQDM_DISABLE', '1')
        return {'transformers': source, 'faster-whisper': convert(source, 'float32').path, 'openai-whisper': convert(source, 'float32', format='openai').path}


@pytest.fixture
def copied(tiny, tmp_path):
    "A copy of one of them that a test may harm."
    return lambda backend: shutil.copytree(tiny[backend], tmp_path / 'models' / tiny[backend].name)


@pytest.fixture
def silent_film(tmp_path):
    "A video without a sound track, `silent.mp4`."
    import av
    with av.open(str(tmp_path / 'silent.mp4'), 'w') as container:
        stream = container.add_stream('mpeg4', rate=10)
        stream.width = stream.height = 64
        for _ in range(3): container.mux(stream.encode(av.VideoFrame(64, 64, 'yuv420p')))
        container.mux(stream.encode(None))
    return tmp_path / 'silent.mp4'
