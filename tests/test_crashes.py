"Kills at any moment: a short form of the campaign, and the moments that chance would not find."
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from campaign import Campaign
from crashes import NAME, run
from test_pack import contents, make_model, visible

from whisper_nb.files import locked
from whisper_nb.models import DEMO_DIR
from whisper_nb.publish import publish
from whisper_nb.pack import pack
from whisper_nb.unpack import unpack
from whisper_nb.verify import verify


def test_short(tmp_path):
    campaign = Campaign('crashes')
    run(campaign, tmp_path, 'short')
    assert not campaign.lost, campaign
    assert {row['subject'] for row in campaign.rows} == {'prepare', 'restore', 'publish', 'convert', 'pack'}
    assert campaign.total('recovered') == campaign.total() >= 13, campaign
    assert {row['fault'] for row in campaign.rows} >= {'killed, an older one there', 'killed, leftovers of a former kill there'}


def build_in_place():
    "A way to publish a directory that makes it grow under its final name."
    import whisper_nb.unpack
    def grow(staging, final):
        shutil.rmtree(final, ignore_errors=True)
        final.mkdir()
        for path in staging.iterdir():
            shutil.copy(path, final)
            time.sleep(0.2)
        shutil.rmtree(staging)
    whisper_nb.unpack.publish_directory = grow


def leave_behind():
    "A run that removes nothing of what a killed one left."
    import whisper_nb.pack
    whisper_nb.pack._clear_partial = lambda final: None
    real = whisper_nb.pack.HashedFile
    class Elsewhere(real):
        def __init__(self, path):
            self.wanted = path
            super().__init__(path.with_name(f'.{path.name}.{time.monotonic_ns()}'))
        def __exit__(self, *arguments):
            super().__exit__(*arguments)
            os.replace(self.path, self.wanted)
    whisper_nb.pack.HashedFile = Elsewhere


@pytest.mark.parametrize('step, hook, words', [('restore', 'build_in_place', 'is neither the old one nor the new one'), ('pack', 'leave_behind', 'is left over')])
def test_the_campaign_can_fail(tmp_path, step, hook, words):
    campaign = Campaign('crashes')
    run(campaign, tmp_path, 'short', (step,), f'test_crashes:{hook}')
    assert campaign.lost and words in str(campaign), campaign


SWAPPED = '''
import os, signal, sys
import whisper_nb.files as files
from whisper_nb.unpack import unpack
files._exchange = lambda one, other: False
real, left = os.rename, [int(sys.argv[1])]
def rename(*arguments):
    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    real(*arguments)
os.rename = rename
unpack(sys.argv[2], 'models')
'''


@pytest.mark.parametrize('renames', [0, 1, 2, 3])
def test_killed_between_two_renames(tmp_path, renames):
    "Where two names cannot be exchanged, the old model has none for a moment: it gets it back from whoever takes the lock next."
    old, new = (make_model(tmp_path / name / 'toy', 1000, seed) for seed, name in enumerate(('old', 'new')))
    archive = pack(new, tmp_path / 'outputs').path
    shutil.copytree(old, 'models/toy')
    done = subprocess.run([sys.executable, '-c', SWAPPED, str(renames), archive], capture_output=True, text=True)
    assert done.returncode == (-signal.SIGKILL if renames < 3 else 0), done.stderr
    if renames == 1: assert not Path('models/toy').exists()
    with locked(Path('models/toy')): assert contents(Path('models/toy')) == contents(old if renames < 2 else new)
    assert not list(Path('models').glob('.*.aside'))
    unpack(archive, 'models')
    assert contents(Path('models/toy')) == contents(new) and visible(Path('models')) == ['toy'] and not list(Path('models/.staging').glob('*'))


def test_what_a_killed_upload_left_goes_with_a_later_publication(tmp_path):
    "Even when that has nothing to upload: an hour later nobody can be writing to it."
    from whisper_nb.convert import convert
    shutil.copytree(DEMO_DIR, 'models/demo')
    model = convert('models/demo').path
    publish(str(model), 'store', skip_test=True).require_ok()
    version = next(path for path in Path('store', NAME).iterdir() if path.is_dir())
    left = [version / f'.{NAME}.tar.gz.0123456789abcdef.partial', version.parent / '.latest.json.0123456789abcdef.partial', Path('outputs') / '.publish-x.json.0123456789abcdef.partial']
    for path in left: path.write_bytes(b'half')
    publish(str(model), 'store', skip_test=True).require_ok()
    assert all(path.exists() for path in left)  # somebody may be writing to it
    for path in left: os.utime(path, (time.time() - 7200,) * 2)
    report = publish(str(model), 'store', skip_test=True)
    assert report.ok and not report.results['uploaded'] and not any(path.exists() for path in left)


def test_what_was_converted_and_killed_before_it_was_swept(tmp_path):
    "The new model has its name, the old one is still where the new one was built: the next run has nothing to do but removes it."
    from whisper_nb.convert import convert
    from whisper_nb.files import staging_path
    shutil.copytree(DEMO_DIR, 'models/demo')
    model = convert('models/demo').path
    shutil.copytree(model, staging_path(model))
    assert convert('models/demo').reused and not staging_path(model).exists() and verify(model).ok
