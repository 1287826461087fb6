"A measured setting is used for the same model on the same machine, and for no other; what is asked for goes first."
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from whisper_nb.audio import default_clip
from whisper_nb.backends import load
from whisper_nb.convert import convert
from whisper_nb.cores import available_cores
from whisper_nb.errors import CheckError, RequestError
from whisper_nb.files import read_manifest
from whisper_nb.models import DEMO_DIR
from whisper_nb.settings import RECOMMENDED, Setting, find_setting, read_settings, this_machine, write_settings
from whisper_nb.transcribe import choose, transcribe

CLIP = default_clip()
FAR = dict(processor='another', cores='64', gpu='NVIDIA H200')


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
    assert find_setting(model).setting == find_setting(str(model), file).setting == find_setting(None).setting == setting_of(model)


def test_without_a_file(model): assert read_settings('nowhere.json') == () and not find_setting(model, 'nowhere.json').why


def test_a_model_without_a_manifest(model):
    write_settings('one.json', [setting_of(model, manifest_sha256=None)])
    assert not Path('one.json').exists()
    write_settings('one.json', [setting_of(model)])
    (model/'manifest.json').unlink()
    assert 'has no manifest' in find_setting(model, 'one.json').why and "is not there" in find_setting(None, 'one.json').why


def test_a_copy_is_the_same_model_and_a_changed_one_is_not(file, model, tmp_path):
    copy = shutil.copytree(model, tmp_path/'elsewhere'/model.name)
    assert find_setting(copy, file).setting
    manifest = json.loads((copy/'manifest.json').read_text())
    (copy/'manifest.json').write_text(json.dumps({**manifest, 'quantization': 'int8'}))
    assert find_setting(copy, file).setting is None and 'nothing in it is about' in find_setting(copy, file).why
    (copy/'manifest.json').write_text('{')
    assert find_setting(copy, file).setting is None


@pytest.mark.parametrize('change', [dict(processor='another'), dict(cores='96'), dict(gpu='NVIDIA H200')])
def test_another_machine(model, change):
    write_settings('one.json', [setting_of(model, machine=this_machine() | change)])
    assert find_setting(model, 'one.json').setting is None and next(iter(change.values())) in find_setting(model, 'one.json').why


def test_what_stays(model):
    other, far = setting_of(model, model='models/other', manifest_sha256='1'*64), setting_of(model, machine=FAR)
    write_settings('one.json', [other])
    write_settings('one.json', [far])  # a colleague's rows
    assert read_settings('one.json') == (far, other)
    write_settings('one.json', [setting_of(model)])
    assert read_settings('one.json') == (setting_of(model), far, other) and find_setting(None, 'one.json').setting == setting_of(model)
    write_settings('one.json', [replace(far, rtfx=900.0)])
    assert read_settings('one.json') == (replace(far, rtfx=900.0), setting_of(model), other) and find_setting(None, 'one.json').setting == setting_of(model)
    write_settings('one.json', [replace(other, manifest_sha256='3'*64)])  # the directory holds another model now
    assert [each.model for each in read_settings('one.json')] == ['models/other', str(model), str(model)]
    Path('one.json').write_text('broken')
    write_settings('one.json', [other])
    assert read_settings('one.json') == (other,)


def test_the_demo_is_nobodys_default_by_accident(model):
    demo = convert(shutil.copytree(DEMO_DIR, 'demo'), 'float16').path.rename('trial')
    write_settings('one.json', [setting_of(demo)])
    assert find_setting(None, 'one.json').setting == setting_of(demo)
    write_settings('one.json', [setting_of(model)])
    write_settings('one.json', [setting_of(demo, rtfx=900.0)])
    assert find_setting(None, 'one.json').setting == setting_of(model) and find_setting(demo, 'one.json').setting.rtfx == 900
    shutil.rmtree(demo)
    write_settings('one.json', [setting_of(model, model='models/demo-ct2-float16', manifest_sha256='4'*64)])  # gone: by its name
    assert read_settings('one.json')[0].model == str(model)


@pytest.mark.parametrize('lost', [dict(compute_type='int4'), dict(device='tpu'), dict(backend='whisper.cpp')])
def test_what_cannot_be_had_now_is_not_used(model, lost):
    write_settings('one.json', [setting_of(model, **lost)])
    found = find_setting(model, 'one.json')
    assert not found and found.why.endswith('is not available here now') and next(iter(lost.values())) in found.why
    assert choose(model, recommended='one.json').options == {}
    with pytest.raises(RequestError, match='not available here now'): choose(None, recommended='one.json')


@pytest.mark.parametrize('text', ['', 'no', '[]', '{"version": 2, "settings": []}', '{"version": 1}', '{"version": 1, "settings": [{}]}', '{"version": "1", "settings": []}'])
def test_a_file_that_cannot_be_used_is_said(text, model):
    Path('one.json').write_text(text)
    with pytest.raises(CheckError, match='one.json') as caught: choose(model, recommended='one.json')
    assert 'whisper-nb bench' in caught.value.advice


@pytest.mark.parametrize('text', ['no', '{"version": 2, "settings": []}'])
def test_a_default_file_that_cannot_be_used_stops_nobody_who_names_a_model(text, file, model):
    file.write_text(text)
    made = choose(model)
    assert made.options == {} and f"is not used: '{file}'" in made.note
    for wrong in (dict(model=None), dict(model=model, recommended=file)):
        with pytest.raises(CheckError, match='recommended.json'): choose(**wrong)


# ---- what is chosen

def test_asked_goes_before_recommended_goes_before_default(file, model):
    everything = choose(model, language='en')
    assert (everything.backend, everything.device, everything.compute_type, everything.threads, everything.options) == ('faster-whisper', 'cpu', 'int8_float32', 1, dict(beam_size=1, batch_size=4, language='en'))
    asked = choose(model, device='cpu', threads=2, beam_size=3, batch_size=1)
    assert (asked.threads, asked.options, asked.compute_type) == (2, dict(beam_size=3, batch_size=1), 'int8_float32')
    assert choose(model, recommended=None).options == choose(model, recommended='').options == choose(model, recommended=False).options == {}
    assert choose(None).model == str(model)


@pytest.mark.parametrize('other', [dict(compute_type='float32'), dict(compute_type='default'), dict(device='cuda'), dict(backend='transformers')])
def test_another_way_than_the_recommended_one_gets_the_defaults(file, model, other):
    made = choose(model, **other)
    assert made.options == {} and made.threads == 0 and 'is not used' in made.note and next(iter(other.values())) in made.note
    with pytest.raises(RequestError, match='is not used'): choose(None, **other)


@pytest.mark.parametrize('same', [dict(compute_type='int8'), dict(compute_type='int8_float32'), dict(device='auto'), dict(device='cpu', backend='faster-whisper')])
def test_the_same_by_another_name(file, model, same): assert choose(model, **same) == choose(model)


@pytest.mark.parametrize('asked, words', [
    ({}, 'batch size 4 (leaves out where nobody speaks; --batch-size 1 does not)'), (dict(vad=True), 'batch size 4'),
    (dict(beam_size=5), 'batch size 4 (leaves out where nobody speaks; --batch-size 1 does not); asked for instead: beam size 5'),
    (dict(batch_size=1, threads=2), 'batch size 4; asked for instead: batch size 1, threads 2'), (dict(batch_size=4, threads=1, beam_size=1), 'batch size 4'),
    (dict(temperature=(0, 0.2)), 'batch size 4; one stretch at a time, because of --temperature'),
    (dict(condition_on_previous_text=True, beam_size=2), 'batch size 4; asked for instead: beam size 2; one stretch at a time, because of --condition-on-previous-text')])
def test_what_is_said(file, model, asked, words):
    assert choose(model, **asked).note == f'{model}, as recommended in {file}: faster-whisper, cpu, int8_float32, beam size 1, 1 thread, {words}'


def test_no_more_threads_than_cores(model):
    write_settings('one.json', [setting_of(model, threads=1000)])
    made = choose(model, recommended='one.json')
    assert made.threads == available_cores() and 'no more cores' in made.note and choose(model, recommended='one.json', threads=3).threads == 3


@pytest.mark.parametrize('alone', [dict(condition_on_previous_text=True), dict(temperature=(0.0, 0.2))])
def test_a_recommended_batch_gives_way(file, model, alone):
    assert choose(model, **alone).options == dict(beam_size=1, **alone)
    assert choose(model, batch_size=2, temperature=(0.0, 0.2)).options['batch_size'] == 2


def test_a_model_in_memory_is_what_it_is(file, model):
    same, other = (load(model, device='cpu', compute_type=name) for name in ('int8', 'float32'))
    assert choose(same).options == choose(other).options == {} and choose(same).note == ''
    assert choose(same, recommended=file).options == dict(beam_size=1, batch_size=4) and choose(other, recommended=file).options == {}
    file.write_text('broken')
    assert choose(same).options == {}


def test_the_setting_is_in_the_log(file, model, caplog):
    with caplog.at_level(logging.INFO, 'whisper_nb'): transcribe(CLIP.path, model, language='en')
    assert [each.getMessage() for each in caplog.records if each.name == 'whisper_nb.transcribe'] == [choose(model, language='en').note]


def test_no_model(model):
    with pytest.raises(RequestError, match='no model is named') as caught: transcribe(CLIP.path)
    assert '--model' in caught.value.advice and 'whisper-nb bench' in caught.value.advice
    with pytest.raises(RequestError, match="no file 'nowhere.json'"): transcribe(CLIP.path, model, recommended='nowhere.json')
    write_settings(RECOMMENDED, [setting_of(model, model='models/moved')])
    with pytest.raises(RequestError, match="'models/moved' is not there \\(seen from the current directory"): transcribe(CLIP.path)


def test_the_command_says_which_setting_it_uses(file, whisper_nb, model):
    done = whisper_nb('transcribe', CLIP.path, '--language', 'en', '--json')
    assert done.returncode == 0 and done.stderr == f'{choose(None).note}\n' and done.stderr.startswith(f'{model}, as recommended in {file}: faster-whisper, cpu, int8_float32, '), done
    row, = json.loads(done.stdout)
    assert {name: row[name] for name in ('backend', 'device', 'compute_type', 'batch_size', 'fallbacks')} == dict(backend='faster-whisper', device='cpu', compute_type='int8_float32', batch_size=4, fallbacks=[])
    done = whisper_nb('transcribe', CLIP.path, '--model', model, '--language', 'en', '--compute-type', 'float32')
    assert done.returncode == 0 and done.stderr == f'the setting recommended in {file} is not used: float32 is asked for, not int8_float32\n'
    done = whisper_nb('transcribe', CLIP.path, '--model', model, '--language', 'en', '--recommended', '')
    assert (done.returncode, done.stderr) == (0, '')
    file.unlink()
    done = whisper_nb('transcribe', CLIP.path)
    assert done.returncode == 2 and done.stderr.startswith('❌ no model is named') and '--model' in done.stderr
