"Faults planted in models of both formats: each is found by the check that is about it, and nothing ever ends in a traceback."
import json, os, shutil, struct, subprocess, sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from checkpoints import dump, edit, make_checkpoint, seal, token_lists, write_features, write_tokenizer
from whisper_nb.convert import convert
from whisper_nb.errors import CheckError, RequestError
from whisper_nb.files import MANIFEST_NAME
from whisper_nb.formats import FormatError, Weights, read_model_bin, read_safetensors
from whisper_nb.verify import VerifyError, require_verified, verify

FORMATS = ('transformers', 'ctranslate2')

@pytest.fixture(scope='module')
def originals(tmp_path_factory):
    "One sound model of each format."
    root = tmp_path_factory.mktemp('verify')
    source = make_checkpoint(root/'tiny', mel_bins=128)
    return dict(transformers=source, ctranslate2=convert(source, 'int8').path)

@pytest.fixture
def model(originals, tmp_path, request):
    "A copy to break; the format is the parameter."
    return Path(shutil.copytree(originals[getattr(request, 'param', 'transformers')], tmp_path/'model'))

def failing(found): return {check.name: check for check in found.failures}

def assert_no_surprise(found):
    "No check may have stumbled over something it did not expect."
    assert not [check for check in found.checks if 'could not be checked' in check.detail], str(found)

# -- sound models ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('shape', [
    dict(), dict(mel_bins=128), dict(tied=False), dict(shards=True), dict(dtype='float32'), dict(dtype='bfloat16'), dict(tokenizer='pieces'), dict(tokenizer='both'),
    dict(features='processor'), dict(timestamps=False), dict(multilingual=False, languages=('en',), no_speech='<|nocaptions|>'), dict(decoder_layers=1, encoder_layers=3)], ids=str)
def test_every_shape_is_sound(shape, tmp_path):
    found = verify(make_checkpoint(tmp_path/'tiny', **shape))
    assert found.ok and found.backends == ('transformers',), str(found)
    assert str(found).splitlines()[-1] == 'loads offline with: transformers'

def test_missing_features_are_no_failure(tmp_path):
    found = verify(make_checkpoint(tmp_path/'tiny', features=None))
    assert found.ok and found.backends == () and 'whisper-nb convert' in found.verdict

def test_missing_generation_settings_are_no_failure(tmp_path):
    found = verify(make_checkpoint(tmp_path/'tiny', generation=False))
    assert found.ok and [check.ok for check in found.checks if check.name == 'settings'] == [None]

def test_without_manifest_is_visible(model):
    (model/MANIFEST_NAME).unlink()
    found = verify(model)
    assert found.ok and found.backends
    assert [check.detail for check in found.checks if check.name == 'integrity'] == ['no manifest: integrity cannot be shown']
    assert '⚠️' in str(found) and json.loads(found.to_json())['checks'][2]['ok'] is None

def test_a_converted_model(originals):
    found = verify(originals['ctranslate2'])
    assert all(check.ok for check in found.checks) and found.backends == ('faster-whisper',)
    assert 'float32' in found.compute_types['cpu'] and found.parameters > 0

def test_compute_types_with_a_gpu(monkeypatch):
    import ctranslate2
    from whisper_nb.verify import compute_types
    monkeypatch.setattr(ctranslate2, 'get_cuda_device_count', lambda: 1)
    monkeypatch.setattr(ctranslate2, 'get_supported_compute_types', lambda device: {'int8', 'float32'} | ({'float16'} if device == 'cuda' else set()))
    assert compute_types() == dict(cpu=('float32', 'int8'), cuda=('float16', 'float32', 'int8'))

def test_paths(tmp_path):
    (tmp_path/'file').write_text('')
    (tmp_path/'empty').mkdir()
    for path in ('nowhere', 'file'):
        with pytest.raises(RequestError): verify(tmp_path/path)
    assert not verify(tmp_path/'empty').ok

def test_no_network_no_writing_no_heavy_imports(originals):
    "In a child whose audit hook forbids sockets and writing; torch and transformers must not be loaded."
    code = '''
import sys
def hook(event, args):
    if event.startswith('socket.'): raise SystemExit(f'network: {event}')
    if event == 'open' and isinstance(args[2], int) and args[2] & 3: raise SystemExit(f'writes: {args[0]}')
    if event in ('os.mkdir', 'os.rename', 'os.remove', 'os.link', 'os.symlink', 'os.truncate'): raise SystemExit(f'writes: {event}')
from whisper_nb.verify import verify
sys.addaudithook(hook)
assert all(verify(path).ok for path in sys.argv[1:])
assert not {'torch', 'transformers'} & set(sys.modules)
'''
    done = subprocess.run([sys.executable, '-c', code, *map(str, originals.values())], capture_output=True, text=True, env={**os.environ, 'PYTHONDONTWRITEBYTECODE': '1'})
    assert done.returncode == 0 and not done.stderr, done.stderr

# -- planted faults ----------------------------------------------------------------------------------------------

def weights_file(model): return model/('model.bin' if (model/'model.bin').exists() else 'model.safetensors')
def cut(model): os.truncate(weights_file(model), weights_file(model).stat().st_size - 1)
def lengthen(model): weights_file(model).open('ab').write(b'\0')
def halve(model): os.truncate(weights_file(model), weights_file(model).stat().st_size // 2)
def flip(model):
    data = bytearray(weights_file(model).read_bytes())
    data[len(data) // 2] ^= 1
    weights_file(model).write_bytes(data)
def header(model): weights_file(model).write_bytes(b'\xff' * 8 + weights_file(model).read_bytes()[8:])
def empty(model): weights_file(model).write_bytes(b'')
def directory(model): weights_file(model).unlink(); weights_file(model).mkdir()
def mel_bins(model): edit(model/'preprocessor_config.json', feature_size=80)
def frames(model): edit(model/'preprocessor_config.json', chunk_length=15)
def no_tokenizer(model): (model/'tokenizer.json').unlink()
def other_tokenizer(model): write_tokenizer(model, *token_lists(languages=('en', 'de')))
def same_size_tokenizer(model): write_tokenizer(model, *token_lists(languages=('en', 'de', 'it')))
def broken_tokenizer(model): edit(model/'tokenizer.json', pre_tokenizer=dict(type='Nonsense'))
def no_config(model): (model/'config.json').unlink()
def link(model): (model/'README.md').unlink(); (model/'README.md').symlink_to('config.json')
def linked_directory(model): (model/'more').symlink_to('/tmp')
def pipe(model): os.mkfifo(model/'pipe')
def name(model): (model/'a:b').write_text('')
def two_cases(model): (model/'readme.MD').write_text('')
def absolute_path(model): edit(model/'preprocessor_config.json', cache='/home/someone/cache')
def extra(model): (model/'extra.txt').write_text('')
def heads_outside(model): edit(model/('config.json' if (model/'model.bin').exists() else 'generation_config.json'), alignment_heads=[[9, 0]])
def suppressed_outside(model): edit(model/('config.json' if (model/'model.bin').exists() else 'generation_config.json'), **{'suppress_ids' if (model/'model.bin').exists() else 'suppress_tokens': [10**6]})

FAULTS = [ # what is planted, and the check that finds it when the manifest agrees with the fault
    (cut, 'weights'), (lengthen, 'weights'), (halve, 'weights'), (header, 'weights'), (empty, 'weights'), (mel_bins, 'features'), (frames, 'features'), (no_tokenizer, 'files'),
    (other_tokenizer, 'tokenizer'), (broken_tokenizer, 'tokenizer'), (no_config, 'files'), (heads_outside, 'settings'), (suppressed_outside, 'settings'), (absolute_path, 'portable')]
IN_THE_DIRECTORY = [(flip, 'integrity'), (extra, 'integrity'), (link, 'portable'), (linked_directory, 'portable'), (pipe, 'portable'), (name, 'portable'), (two_cases, 'portable'), (directory, 'portable')]

@pytest.mark.parametrize('model', FORMATS, indirect=True)
@pytest.mark.parametrize('fault, check', FAULTS)
def test_fault_is_found_twice(model, fault, check):
    "By the manifest, and, when the manifest was made after the fault, by the check that is about it and by no other."
    fault(model)
    assert 'integrity' in failing(verify(model))
    seal(model)
    found = verify(model)
    assert list(failing(found)) == [check] and failing(found)[check].fix and found.backends == (), str(found)
    assert 'nothing' in str(found).splitlines()[-1]
    assert_no_surprise(found)

@pytest.mark.parametrize('model', FORMATS, indirect=True)
@pytest.mark.parametrize('fault, check', IN_THE_DIRECTORY)
def test_fault_in_the_directory(model, fault, check):
    fault(model)
    found = verify(model)
    assert (check in failing(found) or fault is directory) and not found.ok and all(each.fix for each in found.failures), str(found)
    assert_no_surprise(found)

def test_flipped_byte_is_the_only_failure(model):
    flip(model)
    assert list(failing(verify(model))) == ['integrity']

@pytest.mark.parametrize('changed', [dict(d_model=64), dict(encoder_layers=3), dict(encoder_layers=1), dict(decoder_layers=1), dict(num_mel_bins=80), dict(vocab_size=51865),
    dict(max_source_positions=1000), dict(encoder_ffn_dim=32), dict(tie_word_embeddings=False)], ids=str)
def test_configuration_of_another_size(model, changed):
    edit(model/'config.json', **changed)
    seal(model)
    found = verify(model)
    assert 'shapes' in failing(found), str(found)
    assert_no_surprise(found)

@pytest.mark.parametrize('changed', [dict(model_type='bert'), dict(d_model='x'), dict(d_model=-1), dict(d_model=10**30), dict(encoder_layers=10**9), dict(encoder_attention_heads=5), dict(vocab_size=True)], ids=str)
def test_configuration_that_means_nothing(model, changed):
    edit(model/'config.json', **changed)
    seal(model)
    assert 'shapes' in failing(verify(model))

@pytest.mark.parametrize('model', ['ctranslate2'], indirect=True)
def test_tokenizer_of_the_same_size(model):
    same_size_tokenizer(model)
    seal(model)
    assert "'<|it|>'" in failing(verify(model))['tokenizer'].detail

@pytest.mark.parametrize('model', ['ctranslate2'], indirect=True)
def test_config_of_a_converted_model(model):
    edit(model/'config.json', lang_ids=[5])
    seal(model)
    assert list(failing(verify(model))) == ['settings']
    edit(model/'config.json', lang_ids=[], alignment_heads=[])
    seal(model)
    assert verify(model).ok and 'no alignment heads' in [check.detail for check in verify(model).checks if check.ok is None][0]

@pytest.mark.parametrize('model', ['ctranslate2'], indirect=True)
def test_mislabelled_quantization(model):
    edit(model/MANIFEST_NAME, quantization='float16')
    assert list(failing(verify(model))) == ['weights']

@pytest.mark.parametrize('model', FORMATS, indirect=True)
def test_not_the_checkpoint_it_claims_to_be(model):
    seal(model, kind='hub', repo_id='openai/whisper-tiny')
    assert list(failing(verify(model))) == ['checkpoint']
    assert 'openai/whisper-tiny' in failing(verify(model))['checkpoint'].fix

def test_shards(tmp_path):
    model = make_checkpoint(tmp_path/'tiny', shards=True)
    shards = sorted(model.glob('*.safetensors'))
    assert len(shards) > 2
    first, second = shards[0].read_bytes(), shards[1].read_bytes()
    shards[0].write_bytes(second), shards[1].write_bytes(first) # swapped
    seal(model)
    assert 'against the index' in failing(verify(model))['weights'].detail
    shards[0].unlink()
    seal(model)
    assert 'it is missing' in failing(verify(model))['weights'].detail
    for name in ('../x.safetensors', '/x.safetensors', 3, 'x.bin'):
        dump(model/'model.safetensors.index.json', dict(weight_map=dict(a=name)))
        assert 'no name of a shard' in failing(verify(model))['weights'].detail

def test_pickled_weights(model):
    (model/'model.safetensors').rename(model/'pytorch_model.bin')
    assert '--allow-pickle' in failing(verify(model))['files'].fix

def test_leftover_path_is_only_mentioned(model):
    edit(model/'config.json', _name_or_path='/content/drive/checkpoint')
    seal(model)
    found = verify(model)
    assert found.ok and [check.ok for check in found.checks if check.name == 'portable'] == [None]

def test_broken_manifest(model):
    for content in ('', '[]', '{}', '{"version": 1}', '{"version": 1, "files": []}'):
        (model/MANIFEST_NAME).write_text(content)
        assert 'integrity' in failing(verify(model)), content
    (model/MANIFEST_NAME).unlink()
    (model/MANIFEST_NAME).mkdir()
    assert not verify(model).ok

def test_the_fix_is_a_command(originals, tmp_path):
    "For a converted model: the conversion, from the sibling directory it was made from, which makes it sound again."
    shutil.copytree(originals['transformers'], tmp_path/'models'/'tiny')
    path = convert(tmp_path/'models'/'tiny', 'int8').path
    cut(path)
    assert verify(path).failures[0].fix == f"make it again: whisper-nb convert {tmp_path/'models'/'tiny'} --quantization int8"
    convert(tmp_path/'models'/'tiny', 'int8')
    assert verify(path).ok

def test_require_verified(model):
    assert require_verified(model).ok
    cut(model)
    with pytest.raises(VerifyError, match='model does not verify: integrity: model.safetensors has') as caught: require_verified(model)
    assert caught.value.advice.startswith('make it again: whisper-nb prepare') and caught.value.exit_code == 1

def test_text_of_strangers_is_harmless(model):
    "Names and values from the files reach the terminal and the notebook printable, and the suggested command quoted."
    edit(model/'generation_config.json', eos_token_id='\x1b[31m\nred<script>')
    seal(model, kind='hub', repo_id='a/b; rm -rf ~')
    found = verify(model)
    assert '\x1b' not in str(found) and '<script>' not in found._repr_markdown_()
    assert "'a/b; rm -rf ~'" in found.failures[0].fix

# -- anything at all ---------------------------------------------------------------------------------------------

GARBAGE = [b'', b'{', b'[]', b'{}', b'null', b'3', b'"text"', b'[[[[1]]]]', b'\xff\xfe\x00', b'{"model": 3, "weight_map": 3, "d_model": []}', b'[' * 200_000, b'{"a": NaN}', b'1' * 5000,
    json.dumps(dict(model=dict(vocab={'a': 0}), added_tokens=[3])).encode(), json.dumps(dict(feature_size='80', feature_extractor=3, model_type='whisper', alignment_heads=3, lang_ids='x', lang_to_id=[1],
        task_to_id=3, suppress_tokens={}, suppress_ids={'a': 1}, suppress_ids_begin=[None])).encode()]

@pytest.mark.parametrize('model', FORMATS, indirect=True)
def test_every_file_may_hold_anything(model):
    for path in sorted(model.iterdir()):
        whole = path.read_bytes()
        for garbage in GARBAGE:
            path.write_bytes(garbage)
            if path.name != MANIFEST_NAME: seal(model) # or the hash alone would tell
            found = verify(model)
            assert_no_surprise(found)
            assert str(found) and found.to_json() and found._repr_markdown_()
        path.write_bytes(whole)
        seal(model)
        assert verify(model).ok

@pytest.mark.parametrize('model', FORMATS, indirect=True)
def test_every_file_may_be_missing_or_a_directory(model):
    optional = {'README.md', 'generation_config.json', 'preprocessor_config.json', MANIFEST_NAME} # conversion writes the last but one; verify says so
    for path in sorted(model.iterdir()):
        whole = path.read_bytes()
        path.unlink()
        if path.name != MANIFEST_NAME: seal(model)
        found = verify(model)
        assert_no_surprise(found)
        assert found.ok == (path.name in optional and (path.name != 'preprocessor_config.json' or found.format == 'transformers')), (path.name, str(found))
        path.mkdir()
        assert_no_surprise(verify(model))
        path.rmdir()
        path.write_bytes(whole)
        seal(model)

VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5)
ENTRIES = st.fixed_dictionaries({}, optional=dict(dtype=st.sampled_from(['F32', 'F16', 'BF16', 'I8', 'Q4']) | VALUES, shape=st.lists(st.integers(-2, 5), max_size=4) | VALUES, data_offsets=st.lists(st.integers(-2, 80), max_size=3) | VALUES))
FUZZ = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

def read_or_refuse(path, read):
    "The reader's two ways out; a file that passes is described to the last byte."
    try: found = read(path)
    except FormatError as error: assert error.what.isprintable()
    else:
        assert isinstance(found, Weights) and repr(found)
        return found

@FUZZ
@given(header=st.dictionaries(st.text(max_size=8), ENTRIES | VALUES, max_size=5), data=st.binary(max_size=80), length=st.none() | st.integers(0, 2**64 - 1))
def test_any_safetensors_header(header, data, length, tmp_path_factory):
    path = tmp_path_factory.getbasetemp()/f'fuzz-{os.getpid()}.safetensors'
    text = json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, 'little') + text + data)
    if found := read_or_refuse(path, read_safetensors): assert sum(tensor.bytes for tensor in found.tensors.values()) <= len(data) or length is not None

@FUZZ
@given(data=st.binary(max_size=300))
def test_any_bytes(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp()/f'fuzz-{os.getpid()}.bin'
    for prefix in (b'', struct.pack('<I', 6), struct.pack('<IH', 6, 12) + b'WhisperSpec\0' + struct.pack('<II', 3, 1) + struct.pack('<H', 2) + b'a\0'):
        path.write_bytes(prefix + data)
        read_or_refuse(path, read_model_bin), read_or_refuse(path, read_safetensors)

@FUZZ
@given(st.data())
def test_model_bin_with_changed_bytes(originals, tmp_path_factory, data):
    "A real file with its structure hit in a few places: read soundly or refused, and never at odds with its length."
    path, whole = tmp_path_factory.getbasetemp()/f'fuzz-{os.getpid()}.bin', bytearray((originals['ctranslate2']/'model.bin').read_bytes())
    small = whole[:2000] + whole[-2000:]
    for place in data.draw(st.lists(st.integers(0, len(small) - 1), max_size=4)): small[place] = data.draw(st.integers(0, 255))
    path.write_bytes(small)
    read_or_refuse(path, read_model_bin)
