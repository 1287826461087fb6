"Conversion of every shape of checkpoint: complete, reproducible, loadable with the network denied; nothing lost when it fails."
import json, os, shutil, subprocess, sys
from dataclasses import replace
from pathlib import Path

import pytest

import whisper_nb.convert as convert_module
from checkpoints import dump, edit, make_checkpoint, seal
from whisper_nb.convert import convert, convert_all
from whisper_nb.errors import CheckError, RequestError, StepError
from whisper_nb.files import MANIFEST_NAME, hash_file, list_files, read_manifest, staging_path
from whisper_nb.formats import read_json, read_model_bin
from whisper_nb.layout import read_tokens, special_tokens
from whisper_nb.models import CHECKPOINTS, QUANTIZATIONS, Checkpoint
from whisper_nb.verify import VerifyError, verify

FIVE = {'model.bin', 'config.json', 'vocabulary.json', 'tokenizer.json', 'preprocessor_config.json'}
SHAPES = {'80 bins': dict(), '128 bins, as transformers 5 saves it': dict(mel_bins=128, features='processor'), 'untied': dict(tied=False), 'shards': dict(shards=True), 'bfloat16': dict(dtype='bfloat16'),
    'pieces only': dict(tokenizer='pieces', features=None, generation=False, mel_bins=128), 'older tokenizer': dict(timestamps=False, tokenizer='pieces'),
    'English only': dict(multilingual=False, languages=('en',), no_speech='<|nocaptions|>'), 'distilled': dict(decoder_layers=1, encoder_layers=3)}

DENIED = '''
import sys
def deny(event, args):
    if event.startswith('socket.') and event != 'socket.__new__': raise SystemExit(f'network: {event}')
sys.addaudithook(deny)
'''

def child(code, *arguments, **environment):
    "Run Python with the network denied from its first line."
    done = subprocess.run([sys.executable, '-c', DENIED + code, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr[-3000:]
    return done

@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    "Every shape, converted to float16."
    root = tmp_path_factory.mktemp('convert')
    sources = {name: make_checkpoint(root/name.replace(' ', '-').replace(',', ''), **shape) for name, shape in SHAPES.items()}
    return {name: (source, convert(source)) for name, source in sources.items()}

@pytest.fixture
def source(converted, tmp_path): return Path(shutil.copytree(converted['80 bins'][0], tmp_path/'models'/'tiny'))

@pytest.mark.parametrize('name', SHAPES)
def test_complete_and_sound(converted, name):
    source, conversion = converted[name]
    assert FIVE | {'README.md'} == set(list_files(conversion.path))
    found = verify(conversion.path)
    assert found.ok and all(check.ok for check in found.checks), str(found)
    manifest, original = read_manifest(conversion.path), read_manifest(source)
    assert manifest.made_from == dict(name=source.name, manifest_sha256=original.sha256) and manifest.source == original.source
    assert manifest.quantization == 'float16' and set(manifest.made_by) == {'whisper_nb'}
    assert read_tokens(conversion.path) == read_tokens(source)

@pytest.mark.parametrize('name', SHAPES)
def test_settings_are_kept(converted, name):
    source, conversion = converted[name]
    config, special = read_json(conversion.path/'config.json'), special_tokens(read_tokens(source))
    assert config['lang_ids'] == sorted(special.languages.values())
    if (source/'generation_config.json').exists():
        generation = read_json(source/'generation_config.json')
        assert config['alignment_heads'] == generation['alignment_heads'] and config['suppress_ids'] == generation['suppress_tokens']
    else: assert config['alignment_heads'] == [[1, 0], [1, 1]] and 'alignment heads are unknown' in repr(conversion)
    assert read_json(conversion.path/'preprocessor_config.json')['feature_size'] == read_json(source/'config.json')['num_mel_bins']

def test_faster_whisper_loads_all_with_the_network_denied(converted):
    "From copies at another path; encodes a spectrogram of the right height, and knows whether it is multilingual."
    code = '''
import json, numpy
from faster_whisper import WhisperModel
for path in sys.argv[1:]:
    model = WhisperModel(path, device='cpu', compute_type='float32', cpu_threads=1)
    features = model.feature_extractor(numpy.zeros(480000, 'float32'))[:, :3000]
    model.encode(features)
    list(model.transcribe(numpy.zeros(16000, 'float32'), language='en', beam_size=1, max_new_tokens=2, word_timestamps=True, temperature=0)[0])
    print(json.dumps([features.shape[0], model.model.is_multilingual]))
'''
    paths = [conversion.path for _, conversion in converted.values()]
    done = child(code, *paths, HF_HUB_OFFLINE='1')
    expected = [[shape.get('mel_bins', 80), shape.get('multilingual', True)] for shape in SHAPES.values()]
    assert [json.loads(line) for line in done.stdout.splitlines()] == expected

def reference(source, target, quantization):
    "What CTranslate2's own converter writes."
    from ctranslate2.converters import TransformersConverter
    from transformers.utils import logging
    logging.disable_progress_bar()
    tokens = {token: place for place, token in enumerate(read_tokens(source))}
    class Tokens:
        def get_vocab(self): return tokens
    class LocalConverter(TransformersConverter):
        def load_model(self, model_class, name, **options): return super().load_model(model_class, name, local_files_only=True, **options)
        def load_tokenizer(self, tokenizer_class, name, **options): return Tokens()
    LocalConverter(str(source), load_as_float16=quantization in ('float16', 'int8_float16')).convert(str(target), quantization=quantization)

ARCHITECTURES = ['80 bins', 'untied', 'shards', 'distilled', 'older tokenizer']
@pytest.mark.parametrize('shape', ARCHITECTURES)
@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_same_bytes_as_the_converter_of_ctranslate2(tmp_path, shape, dtype):
    "model.bin and vocabulary.json, for every quantization: all of them made from one pass over the source."
    source = make_checkpoint(tmp_path/'tiny', width=40, **SHAPES[shape] | dict(dtype=dtype))
    spoil_rows(source)
    for made in convert_all(source, QUANTIZATIONS):
        reference(source, tmp_path/'reference'/made.quantization, made.quantization)
        for name in 'model.bin', 'vocabulary.json':
            assert (made.path/name).read_bytes() == (tmp_path/'reference'/made.quantization/name).read_bytes(), f'{made.quantization}: {name}'

def spoil_rows(source):
    "Numbers that are hard to get right: rows of zeros, tiny and huge ones, halves that must be rounded, a bias equal to another one but for the sign of a zero."
    import torch
    from safetensors.torch import load_file, save_file
    for path in source.glob('*.safetensors'):
        weights = load_file(path)
        for name, tensor in weights.items():
            if name.endswith('fc1.weight'): tensor[0], tensor[1], tensor[2] = 0, tensor[1] * 1e-4, tensor[2] * 1e3
            if name.endswith('fc2.weight'): tensor[:] = (tensor * 8).round() / 8 + 1/16
            if name.endswith('v_proj.bias'): tensor[0] = -0.0
        save_file(weights, path, metadata=dict(format='pt'))
    seal(source)

def test_memory_does_not_grow_with_the_model(tmp_path):
    "A child that converts 300 MB into two quantizations stays far below that."
    source = make_checkpoint(tmp_path/'tiny', width=1024, encoder_layers=15, decoder_layers=2, heads=16)
    assert (source/'model.safetensors').stat().st_size > 200_000_000
    code = """
import resource, sys
from whisper_nb.convert import convert_all
convert_all(sys.argv[1], ('float16', 'int8'))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    launcher = 'import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))'  # small: the peak of whoever forks is inherited
    done = subprocess.run([sys.executable, '-I', '-S', '-c', launcher, sys.executable, '-c', code, str(source)], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 200_000_000, done.stdout

def test_float64(tmp_path):
    "No model is published so, but some are saved so: taken as float32, in every quantization."
    source = make_checkpoint(tmp_path/'tiny', dtype='float64')
    for made in convert_all(source, QUANTIZATIONS): assert verify(made.path).ok and 'float64' not in read_model_bin(made.path/'model.bin').dtypes

def test_what_a_killed_run_left_does_not_count_as_used(source, monkeypatch):
    "The disk has room for the model only when the half of it in the staging directory is removed first."
    import whisper_nb.files as files
    staging = staging_path(source.parent/'tiny-ct2-float16')
    staging.mkdir(parents=True)
    (staging/'model.bin').write_bytes(bytes(30_000_000))
    free = lambda path: 31_000_000 - sum(each.stat().st_size for each in source.parent.glob('.staging/*/*'))
    monkeypatch.setattr(files, 'free_bytes', free)
    assert verify(convert(source).path).ok

def test_several_at_once(source):
    both = convert_all(source, ('int8', 'float16'))
    assert [made.quantization for made in both] == ['int8', 'float16'] and not any(made.reused for made in both)
    assert [made.reused for made in convert_all(source, ('float16', 'int8', 'int16'))] == [True, True, False]
    alone = convert(source, 'int8', models_dir=source.parent/'alone')
    assert read_manifest(alone.path) == read_manifest(both[0].path)

def test_full_disk_is_told_before_anything_is_written(source, monkeypatch):
    "With what is needed for both and what is free; one of them alone would fit."
    import whisper_nb.files as files
    alone = convert(source, 'int8', models_dir=source.parent/'alone')
    monkeypatch.setattr(files, 'free_bytes', lambda path: 2*20_000_000 + alone.bytes//2)
    with pytest.raises(StepError, match=r'the conversion needs [\d.]+ MB on the disk, 40[\d.]* MB are free'): convert_all(source, ('int8', 'float32'))
    assert not list(source.parent.glob('tiny-ct2-*')) and not list(source.parent.glob('.staging/*'))

@pytest.mark.parametrize('field', [dict(activation_function='relu'), dict(scale_embedding=True)])
def test_what_ctranslate2_would_compute_otherwise_is_refused(source, field):
    edit(source/'config.json', **field)
    seal(source)
    with pytest.raises(CheckError, match='CTranslate2 computes Whisper only with') as caught: convert(source)
    assert '--no-convert' in caught.value.advice and not (source.parent/'tiny-ct2-float16').exists()

CONVERT = '''
from whisper_nb.convert import convert
import hashlib, pathlib
for quantization in sys.argv[2:]:
    made = convert(sys.argv[1], quantization)
    print(quantization, hashlib.sha256((made.path/'manifest.json').read_bytes()).hexdigest())
'''

def test_same_bytes_in_every_process_and_no_noise(converted, tmp_path):
    "Two processes with different hash seeds, in other directories; from the older pieces, where most is made anew."
    said = []
    for seed in '1', '2':
        source = Path(shutil.copytree(converted['pieces only'][0], tmp_path/seed/'tiny'))
        done = child(CONVERT, source, 'float16', 'int8', PYTHONHASHSEED=seed)
        assert done.stderr == ''
        said.append(done.stdout)
    assert said[0] == said[1] and len(said[0].splitlines()) == 2

def test_every_quantization(source):
    "All are sound and stored as their name says; the source's bytes are untouched, though the converter scales weights in place."
    shutil.rmtree(source)
    make_checkpoint(source, dtype='float32')
    before = hash_file(source/'model.safetensors')
    for quantization in QUANTIZATIONS:
        conversion = convert(source, quantization)
        types = set(read_model_bin(conversion.path/'model.bin').dtypes)
        assert verify(conversion.path).ok and (quantization.split('_')[0] in types), quantization
        assert conversion.path.name == f'tiny-ct2-{quantization}'
    assert hash_file(source/'model.safetensors') == before
    sizes = {quantization: convert(source, quantization).bytes for quantization in ('float32', 'float16', 'int8_float16')}
    assert sizes['float32'] > sizes['float16'] > sizes['int8_float16']

def test_known_checkpoint_lends_its_alignment_heads(source, monkeypatch):
    (source/'generation_config.json').unlink()
    known = Checkpoint('openai/whisper-tiny', 32, 2, 2, 2, read_json(source/'config.json')['vocab_size'], ((1, 1),))
    monkeypatch.setitem(CHECKPOINTS, 'openai/whisper-tiny', known)
    seal(source, kind='hub', repo_id='openai/whisper-tiny', commit='0' * 40, license='mit')
    conversion = convert(source)
    assert read_json(conversion.path/'config.json')['alignment_heads'] == [[1, 1]] and 'openai/whisper-tiny' in conversion.notes[0]
    assert read_manifest(conversion.path).source['license'] == 'mit'

def test_licence_travels(source):
    (source/'LICENSE').write_text('as is')
    seal(source)
    assert (convert(source).path/'LICENSE').read_text() == 'as is'

def test_older_settings_in_config_json(source):
    (source/'generation_config.json').unlink()
    edit(source/'config.json', suppress_tokens=[1, 2, 50_000], begin_suppress_tokens=[220, 50_256])
    seal(source)
    config = read_json(convert(source).path/'config.json')
    assert config['suppress_ids'] == [1, 2] and config['suppress_ids_begin'] == [220]

def test_foreign_directory_and_other_destination(source, tmp_path):
    "A checkpoint without a manifest converts too, without being written to."
    (source/MANIFEST_NAME).unlink()
    conversion = convert(source, models_dir=tmp_path/'elsewhere')
    assert conversion.path == tmp_path/'elsewhere'/'tiny-ct2-float16' and not (source/MANIFEST_NAME).exists()
    assert convert(source, models_dir=tmp_path/'elsewhere').reused

def test_reuse(source):
    first = convert(source)
    assert not first.reused and convert(source).reused and not convert(source, fresh=True).reused
    assert sorted(path.name for path in source.parent.iterdir() if not path.name.startswith('.')) == ['tiny', 'tiny-ct2-float16']
    os.truncate(first.path/'model.bin', 1000) # damaged: made again
    assert not convert(source).reused and verify(first.path).ok
    (source/'README.md').write_text('another text') # the source is another one now
    seal(source)
    assert not convert(source).reused and convert(source).reused
    edit(first.path/MANIFEST_NAME, made_by=dict(whisper_nb='0.0.1')) # made by other versions
    assert not convert(source).reused

@pytest.mark.parametrize('step', ['write_weights', 'complete', 'require_verified', 'publish_directory'])
def test_failing_leaves_what_was_there(source, monkeypatch, step):
    before = read_manifest(convert(source).path)
    calls = []
    def fail(*args):
        calls.append(args)
        if step != 'require_verified' or len(calls) > 1: raise StepError('no more space', 'free some') # the first is about the source
        return verify(*args)
    if step == 'write_weights': monkeypatch.setitem(convert_module._TARGETS, 'ctranslate2', replace(convert_module._TARGETS['ctranslate2'], write=fail))
    else: monkeypatch.setattr(convert_module, step, fail)
    with pytest.raises(StepError): convert(source, fresh=True)
    monkeypatch.undo()
    path = source.parent/'tiny-ct2-float16'
    assert read_manifest(path) == before and verify(path).ok and not staging_path(path).exists()

def test_remains_of_a_killed_run_do_no_harm(source):
    staging = staging_path(source.parent/'tiny-ct2-float16')
    staging.mkdir(parents=True)
    (staging/'model.bin').write_bytes(b'half')
    (staging/'leftover').write_text('')
    assert verify(convert(source).path).ok and not staging.exists()

def test_killed_and_run_again(source, tmp_path):
    "SIGKILL in the middle of it, then again: the same bytes as without."
    expected = read_manifest(convert(source, models_dir=tmp_path/'calm').path)
    code = CONVERT.replace('for quantization', '''
import os, signal
import whisper_nb.convert as module
real = module.complete
module.complete = lambda *args: (real(*args), os.kill(os.getpid(), signal.SIGKILL))
for quantization''')
    done = subprocess.run([sys.executable, '-c', 'import sys\n' + code, str(source), 'float16'], capture_output=True)
    path = source.parent/'tiny-ct2-float16'
    assert done.returncode == -9 and not path.exists() and staging_path(path).exists()
    assert read_manifest(convert(source).path) == expected

def test_refusals(source, tmp_path):
    with pytest.raises(RequestError, match="no quantization 'int4'") as caught: convert(source, 'int4')
    assert 'int8_float16' in caught.value.advice
    with pytest.raises(RequestError, match='nothing is at'): convert(tmp_path/'nowhere')
    with pytest.raises(RequestError, match='already a model for faster-whisper'): convert(convert(source).path)
    (source.parent/'tiny-ct2-int8').mkdir()
    (source.parent/'tiny-ct2-int8'/'thesis.tex').write_text('years of work')
    with pytest.raises(RequestError, match='not a prepared model'): convert(source, 'int8', fresh=True)
    assert (source.parent/'tiny-ct2-int8'/'thesis.tex').read_text() == 'years of work'
    (source.parent/'tiny-ct2-int16').write_text('')
    with pytest.raises(RequestError, match='not a prepared model'): convert(source, 'int16')

@pytest.mark.parametrize('fault', ['cut', 'no tokenizer', 'pickle'])
def test_unsound_source_is_refused(source, fault):
    if fault == 'cut': os.truncate(source/'model.safetensors', 1000)
    if fault == 'no tokenizer': (source/'tokenizer.json').unlink()
    if fault == 'pickle': (source/'model.safetensors').rename(source/'pytorch_model.bin')
    with pytest.raises(VerifyError) as caught: convert(source)
    assert caught.value.advice and not (source.parent/'tiny-ct2-float16').exists()

def test_mixed_up_pieces(tmp_path):
    source = make_checkpoint(tmp_path/'tiny', tokenizer='pieces')
    (source/'merges.txt').write_text('x y\n')
    seal(source)
    with pytest.raises(CheckError, match='do not fit together'): convert(source)

def test_current_directory(source, monkeypatch):
    monkeypatch.chdir(source)
    assert convert('.').path.name == 'tiny-ct2-float16'
