"A measured setting is used for the same model on the same machine, and for no other; what is asked for goes first."
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from whisper_nb.audio import default_clip
from whisper_nb.backends import load
from whisper_nb.errors import CheckError, RequestError
from whisper_nb.files import read_manifest
from whisper_nb.settings import RECOMMENDED, Setting, find_setting, read_settings, setting_for, this_machine, write_settings
from whisper_nb.transcribe import choose, transcribe

CLIP = default_clip()


def setting_of(model, /, **changes):
    made = Setting(str(model), read_manifest(model).sha256, 'faster-whisper', 'cpu', 'int8_float32', 1, 4, 1, rtfx=40.0, wer=0.05, peak_memory=400_000_000,
        reason='the fastest', machine=this_machine(), measured='2026-11-21T12:00:00Z', rows='outputs/bench/demo/rows.jsonl')
    return replace(made, **changes)


@pytest.fixture
def model(copied): return copied('faster-whisper')


@pytest.fixture
def file(model):
    write_settings(RECOMMENDED, [setting_of(model)])
    return Path(RECOMMENDED)


def test_written_and_read(file, model):
    assert read_settings(file) == (setting_of(model),) and os.listdir(file.parent) == [file.name]
    assert setting_for(model) == setting_for(str(model), file) == setting_for(None) == setting_of(model)


def test_without_a_file(model): assert read_settings('nowhere.json') == () and not find_setting(model, 'nowhere.json').why


def test_a_copy_is_the_same_model_and_a_changed_one_is_not(file, model, tmp_path):
    copy = shutil.copytree(model, tmp_path/'elsewhere'/model.name)
    assert setting_for(copy, file)
    manifest = json.loads((copy/'manifest.json').read_text())
    (copy/'manifest.json').write_text(json.dumps({**manifest, 'quantization': 'int8'}))
    assert setting_for(copy, file) is None and 'nothing in it is about' in find_setting(copy, file).why
    (copy/'manifest.json').write_text('{')
    assert setting_for(copy, file) is None


@pytest.mark.parametrize('change', [dict(processor='another'), dict(cores='96'), dict(gpu='NVIDIA H200')])
def test_another_machine(model, change):
    write_settings('one.json', [setting_of(model, machine=this_machine() | change)])
    assert setting_for(model, 'one.json') is None and next(iter(change.values())) in find_setting(model, 'one.json').why


def test_what_stays(model):
    other, far = (setting_of(model, model=name, manifest_sha256=digit*64, **more) for name, digit, more in (('models/other', '1', {}), ('models/far', '2', dict(machine=dict(processor='another')))))
    write_settings('one.json', [far])
    write_settings('one.json', [other])
    assert read_settings('one.json') == (other,)
    write_settings('one.json', [setting_of(model)])
    assert read_settings('one.json') == (setting_of(model), other)
    write_settings('one.json', [replace(other, manifest_sha256='3'*64)])  # the directory holds another model now
    assert [each.model for each in read_settings('one.json')] == ['models/other', str(model)]
    Path('one.json').write_text('broken')
    write_settings('one.json', [other])
    assert read_settings('one.json') == (other,)


@pytest.mark.parametrize('text', ['', 'no', '[]', '{"version": 2, "settings": []}', '{"version": 1}', '{"version": 1, "settings": [{}]}', '{"version": "1", "settings": []}'])
def test_a_file_that_cannot_be_used_is_said(text, model):
    Path('one.json').write_text(text)
    with pytest.raises(CheckError, match='one.json') as caught: choose(model, recommended='one.json')
    assert 'whisper-nb bench' in caught.value.advice


# ---- what is chosen

def test_asked_goes_before_recommended_goes_before_default(file, model):
    everything = choose(model, language='en')
    assert (everything.backend, everything.device, everything.compute_type, everything.threads, everything.options) == ('faster-whisper', 'cpu', 'int8_float32', 1, dict(beam_size=1, batch_size=4, language='en'))
    asked = choose(model, device='cpu', threads=2, beam_size=3, batch_size=1)
    assert (asked.threads, asked.options, asked.compute_type) == (2, dict(beam_size=3, batch_size=1), 'int8_float32')
    assert choose(model, recommended=None).options == choose(model, recommended='').options == {}
    assert choose(None).model == str(model)


@pytest.mark.parametrize('other', [dict(compute_type='float32'), dict(device='cuda'), dict(device='auto'), dict(backend='transformers')])
def test_another_way_than_the_recommended_one_gets_the_defaults(file, model, other):
    made = choose(model, **other)
    assert made.options == {} and made.threads == 0 and 'is not used' in made.note and next(iter(other.values())) in made.note
    with pytest.raises(RequestError, match='is not used'): choose(None, **other)


@pytest.mark.parametrize('alone', [dict(condition_on_previous_text=True), dict(temperature=(0.0, 0.2))])
def test_a_recommended_batch_gives_way(file, model, alone):
    assert choose(model, **alone).options == dict(beam_size=1, **alone)
    assert choose(model, batch_size=2, temperature=(0.0, 0.2)).options['batch_size'] == 2


def test_a_model_in_memory_is_what_it_is(file, model):
    same, other = (load(model, device='cpu', compute_type=name) for name in ('int8', 'float32'))
    assert choose(same).options == dict(beam_size=1, batch_size=4) and choose(other).options == {}


def test_no_model(model):
    with pytest.raises(RequestError, match='no model is named') as caught: transcribe(CLIP.path)
    assert '--model' in caught.value.advice and 'whisper-nb bench' in caught.value.advice
    with pytest.raises(RequestError, match="no file 'nowhere.json'"): transcribe(CLIP.path, model, recommended='nowhere.json')
    write_settings(RECOMMENDED, [setting_of(model, model='models/moved')])
    with pytest.raises(RequestError, match="'models/moved' is not there"): transcribe(CLIP.path)


def test_the_command_says_which_setting_it_uses(file, whisper_nb, model):
    done = whisper_nb('transcribe', CLIP.path, '--language', 'en', '--json')
    assert done.returncode == 0 and done.stderr == f'as recommended in {file}: faster-whisper, cpu, int8_float32, beam size 1, batch size 4\n' and json.loads(done.stdout)[0]['audio']
    done = whisper_nb('transcribe', CLIP.path, '--model', model, '--language', 'en', '--compute-type', 'float32')
    assert done.returncode == 0 and done.stderr == f'the setting recommended in {file} is not used: float32 is asked for, not int8_float32\n'
    done = whisper_nb('transcribe', CLIP.path, '--model', model, '--language', 'en', '--recommended', '')
    assert (done.returncode, done.stderr) == (0, '')
    file.unlink()
    done = whisper_nb('transcribe', CLIP.path)
    assert done.returncode == 2 and done.stderr.startswith('❌ no model is named') and '--model' in done.stderr
