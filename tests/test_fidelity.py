"The fidelity gate: sound conversions of every shape pass, every planted fault is found, and the finding that must see it does."
import json
import re
import shutil
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints import edit, make_checkpoint, seal
from whisper_nb.audio import clips
from whisper_nb.convert import convert, convert_all
from whisper_nb.errors import CheckError, RequestError, WhisperNbError
from whisper_nb.fidelity import LIMITS, fidelity, proven_fidelity
from whisper_nb.files import MANIFEST_NAME
from whisper_nb.formats import FormatError, read_json, read_model_bin
from whisper_nb.models import DEMO_DIR, QUANTIZATIONS
from whisper_nb.prepare import prepare

ENCODER, DECODER = 'model.encoder.layers.', 'model.decoder.layers.'
LISTENING = {'encoder', 'logits', 'log-probabilities', 'tokens', 'alignment'}


WORDS = [clip.path for clip in clips() if clip.text][4:]  # one window


def compare(*arguments, recordings=WORDS): return fidelity(*arguments, clips=recordings, device='cpu', threads=1)


def failed(found, stage=None): return {finding.what for finding in found.failures if stage in (None, finding.stage)}


@pytest.fixture(scope='session')
def demo(tmp_path_factory):
    "The demo model and all its conversions, none of which may be changed."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('TQDM_DISABLE', '1')
        source = shutil.copytree(DEMO_DIR, tmp_path_factory.mktemp('fidelity') / 'demo')
        seal(source)
        return source, {made.quantization: made.path for made in convert_all(source, QUANTIZATIONS)}


@pytest.fixture
def copied(demo, tmp_path):
    "A copy of a conversion that a test may harm."
    return lambda quantization='float16': shutil.copytree(demo[1][quantization], tmp_path / demo[1][quantization].name)


@pytest.fixture
def harmed(demo, tmp_path):
    "Convert a source whose tensors were changed by a function; what comes out is to be compared with the sound source."
    def make(change, quantization='float16'):
        wrong = shutil.copytree(DEMO_DIR, tmp_path / 'wrong')
        tensors = load_file(wrong / 'model.safetensors')
        change(tensors)
        save_file(tensors, wrong / 'model.safetensors', metadata=dict(format='pt'))
        return convert(wrong, quantization).path
    return make


# Sound conversions

@pytest.mark.parametrize('quantization', QUANTIZATIONS)
def test_every_quantization_of_the_demo_is_faithful(demo, quantization):
    found = compare(demo[1][quantization], recordings=None)
    assert found.ok, found.problem
    assert found.compute_types['float32'] == 'float32'
    assert (quantization in found.compute_types) == (quantization not in ('float16', ))
    strict = [finding for finding in found.findings if finding.stage == 'float32' and not finding.share]
    assert all(finding.value < finding.limit / 20 for finding in strict), found
    loose = [finding for finding in found.findings if finding.stage == quantization and not finding.share]
    assert all(finding.value < finding.limit / 3 for finding in loose), found
    assert not list(demo[0].parent.glob('.staging/*')), 'the model made for the comparison is removed'


SHAPES = {'float32 source, 128 bins': dict(dtype='float32', mel_bins=128, features='processor'), 'bfloat16, untied, shards': dict(dtype='bfloat16', tied=False, shards=True),
    'English only': dict(multilingual=False, languages=('en',), no_speech='<|nocaptions|>'), 'pieces only': dict(tokenizer='pieces', features=None, generation=False, mel_bins=128),
    'older tokenizer': dict(timestamps=False, tokenizer='pieces'), 'distilled': dict(decoder_layers=1, encoder_layers=3)}

@pytest.mark.parametrize('shape', SHAPES)
def test_every_shape_is_faithful(tmp_path, shape):
    "Random weights: these models never stop, and their times mean nothing."
    source = make_checkpoint(tmp_path / 'tiny', width=48, **SHAPES[shape])
    for made in convert_all(source, ('float16', 'int8')):
        found = compare(made.path)
        assert found.ok, f'{made.quantization}: {found}'


@pytest.mark.parametrize('quantization', ['float16', 'bfloat16'])
def test_a_model_for_openai_whisper_is_faithful(demo, tmp_path, quantization):
    pytest.importorskip('whisper.timing')
    found = compare(convert(demo[0], quantization, tmp_path, format='openai').path, demo[0])
    assert found.ok, found
    assert len(found.findings) == 10 if quantization == 'float16' else 15


# Planted faults: weights

def permute(name, seed=0):
    def change(tensors): tensors[name] = np.random.default_rng(seed).permutation(tensors[name])
    return change

def two_rows(name):
    def change(tensors): tensors[name][[3, 4]] = tensors[name][[4, 3]]
    return change

def exchange(one, other):
    def change(tensors):
        for name in [name for name in tensors if name.startswith(one)]:
            twin = other + name.removeprefix(one)
            tensors[name], tensors[twin] = tensors[twin], tensors[name]
    return change

def shift_positions(tensors):
    name = 'model.decoder.embed_positions.weight'
    tensors[name] = np.roll(tensors[name], 1, axis=0)

FAULTS = { # What is done, what it must break besides the weights' own check
    'encoder: rows of a query matrix': (permute(f'{ENCODER}0.self_attn.q_proj.weight'), {'encoder', 'logits', 'log-probabilities', 'tokens'}),
    'encoder: rows of a value matrix': (permute(f'{ENCODER}3.self_attn.v_proj.weight'), {'encoder', 'logits', 'log-probabilities', 'tokens'}),
    'encoder: rows of fc1': (permute(f'{ENCODER}2.fc1.weight'), {'encoder', 'logits', 'log-probabilities'}),
    'encoder: a layer norm': (permute(f'{ENCODER}0.final_layer_norm.weight'), {'encoder', 'logits', 'log-probabilities'}),
    'encoder: two rows of a query matrix': (two_rows(f'{ENCODER}1.self_attn.q_proj.weight'), {'encoder', 'logits'}),
    'encoder: two layers exchanged': (exchange(f'{ENCODER}1.', f'{ENCODER}2.'), {'encoder', 'logits', 'log-probabilities', 'alignment'}),
    'encoder: query and key exchanged': (exchange(f'{ENCODER}1.self_attn.q_proj.weight', f'{ENCODER}1.self_attn.k_proj.weight'), {'encoder', 'logits', 'tokens'}),
    'decoder: rows of a key matrix': (permute(f'{DECODER}0.self_attn.k_proj.weight'), {'logits', 'log-probabilities', 'tokens'}),
    'decoder: rows of the keys to the audio': (permute(f'{DECODER}1.encoder_attn.k_proj.weight'), {'logits', 'log-probabilities', 'tokens', 'alignment'}),
    'decoder: rows of fc1': (permute(f'{DECODER}1.fc1.weight'), {'logits', 'log-probabilities'}),
    'decoder: a layer norm': (permute(f'{DECODER}1.encoder_attn_layer_norm.weight'), {'logits', 'log-probabilities'}),
    'decoder: two rows of a query matrix': (two_rows(f'{DECODER}1.self_attn.q_proj.weight'), {'logits', 'log-probabilities'}),
    'decoder: layers exchanged': (exchange(f'{DECODER}0.', f'{DECODER}1.'), {'logits', 'log-probabilities', 'tokens', 'alignment'}),
    'decoder: positions shifted by one': (shift_positions, {'logits', 'log-probabilities', 'tokens', 'alignment'}),
}

@pytest.mark.parametrize('fault', FAULTS)
def test_wrong_weights_are_found(demo, harmed, fault):
    change, broken = FAULTS[fault]
    found = compare(harmed(change), demo[0])
    assert failed(found, 'files') == {'weights'}
    assert broken <= failed(found, 'float32') <= LISTENING
    worst = [finding for finding in found.failures if finding.what == 'logits']
    assert worst[0].value > 10 * worst[0].limit, 'far over the limit'
    if fault.startswith('decoder'): assert 'encoder' not in failed(found), 'the encoder is sound, and said to be'
    with pytest.raises(CheckError, match='is not what demo is'): found.require()


@pytest.mark.parametrize('quantization', ['float16', 'int8'])
def test_one_number_that_is_none_is_found(demo, harmed, quantization):
    "A NaN somewhere: no comparison with it is true, so it must not slip through as 'not larger than the limit'."
    def change(tensors): tensors[f'{ENCODER}0.self_attn_layer_norm.bias'][0] = np.nan
    found = compare(harmed(change, quantization), demo[0])
    assert failed(found, 'files') == {'weights'}
    if quantization == 'float16': assert {'encoder', 'logits', 'log-probabilities'} <= failed(found, 'float32') # int8 activations swallow it


@pytest.mark.parametrize('fault', ['encoder: rows of a query matrix', 'encoder: two rows of a query matrix', 'decoder: rows of the keys to the audio', 'decoder: a layer norm'])
def test_int8_hides_no_fault(demo, harmed, fault):
    "The float32 stage of an int8 model is a sound one made for the moment; the weights' own check and the second stage must see the fault."
    found = compare(harmed(FAULTS[fault][0], 'int8'), demo[0])
    assert failed(found, 'files') == {'weights'}
    assert not failed(found, 'float32')
    if 'two rows' not in fault and 'norm' not in fault: assert {'logits', 'log-probabilities'} <= failed(found, 'int8')


def harm_scales(path, name):
    "Shift the factors of one quantized matrix by one row."
    tensor, data = read_model_bin(path / 'model.bin').tensors[f'{name}_scale'], bytearray((path / 'model.bin').read_bytes())
    scales = np.frombuffer(data, np.float32, tensor.count, tensor.start)
    data[tensor.start:tensor.start + tensor.bytes] = np.roll(scales, 1).tobytes()
    (path / 'model.bin').write_bytes(data)

@pytest.mark.parametrize('name', ['encoder/conv2/weight', 'decoder/embeddings/weight', 'decoder/layer_1/self_attention/linear_1/weight'])
def test_slipped_factors_are_found(copied, demo, name):
    path = copied('int8')
    harm_scales(path, name)
    found = compare(path, demo[0])
    assert failed(found, 'files') == {'weights'}
    assert any(name in finding.detail for finding in found.failures)


def test_swapped_shards_are_found(tmp_path):
    "A sharded source in which the tensors of two layers lie in each other's shards was converted; the sound one is what it is compared with."
    sound = make_checkpoint(tmp_path / 'sound', shards=True, width=48, encoder_layers=3)
    wrong = shutil.copytree(sound, tmp_path / 'wrong')
    files = {name: load_file(wrong / name) for name in {*read_json(wrong / 'model.safetensors.index.json')['weight_map'].values()}}
    places = {tensor: file for file, tensors in files.items() for tensor in tensors}
    one, other = (f'{ENCODER}{layer}.fc1.weight' for layer in (0, 2))
    assert places[one] != places[other]
    files[places[one]][one], files[places[other]][other] = files[places[other]][other], files[places[one]][one]
    for name, tensors in files.items(): save_file(tensors, wrong / name, metadata=dict(format='pt'))
    seal(wrong)
    found = compare(convert(wrong).path, sound)
    assert {'weights', 'encoder', 'logits'} <= failed(found)


def test_another_architecture_is_found_before_anything_is_run(demo, tmp_path):
    other = make_checkpoint(tmp_path / 'other')
    found = compare(convert(other).path, demo[0])
    assert [finding.what for finding in found.findings] == ['architecture'] and not found.ok
    assert 'width 32, not 128' in found.problem


# Planted faults: the files beside the weights

def test_wrong_alignment_heads_are_found(copied, demo):
    path = copied()
    edit(path / 'config.json', alignment_heads=[[0, 0], [0, 2]])
    found = compare(path, demo[0])
    assert failed(found) == {'settings', 'alignment'}
    assert 'alignment_heads' in found.problem


def test_lost_settings_are_found(copied, demo):
    path = copied()
    edit(path / 'config.json', lang_ids=[], suppress_ids=[])
    assert failed(compare(path, demo[0])) == {'settings'}


def test_two_tokens_exchanged_everywhere_are_found(copied, demo):
    "tokenizer.json and vocabulary.json agree with each other, so `verify` has nothing against them."
    path = copied()
    tokens, data = read_json(path / 'vocabulary.json', list), read_json(path / 'tokenizer.json')
    one, other = (tokens.index(token) for token in ('Ġkitchen', 'Ġgarden'))
    tokens[one], tokens[other] = tokens[other], tokens[one]
    data['model']['vocab'] |= {tokens[one]: one, tokens[other]: other}
    for name, value in (('vocabulary.json', tokens), ('tokenizer.json', data)): (path / name).write_text(json.dumps(value), encoding='utf-8')
    found = compare(path, demo[0])
    assert failed(found) == {'tokenizer'}
    assert re.search('kitchen|garden', found.problem)


def test_merges_of_another_tokenizer_are_found(copied, demo):
    path = copied()
    data = read_json(path / 'tokenizer.json')
    data['model']['merges'] = data['model']['merges'][::-1]
    (path / 'tokenizer.json').write_text(json.dumps(data), encoding='utf-8')
    found = compare(path, demo[0])
    assert failed(found) == {'tokenizer'}
    assert 'other merges' in found.problem


def test_wrong_number_of_mel_bins_is_found(tmp_path):
    source = make_checkpoint(tmp_path / 'tiny', mel_bins=128)
    path = convert(source).path
    edit(path / 'preprocessor_config.json', feature_size=80)
    found = compare(path)
    assert failed(found) == {'spectrogram'}
    assert '80 mel bins, not 128' in found.problem
    assert json.loads(found.to_json())['ok'] is False


# Proven once

def test_a_result_is_reused_until_something_changes(demo, tmp_path):
    source, path = demo[0], demo[1]['float16']
    first = proven_fidelity(path, outputs_dir=tmp_path, device='cpu', threads=1)
    assert first.ok and not first.reused
    again = proven_fidelity(path, outputs_dir=tmp_path, device='cpu')
    assert again.reused and again.findings == first.findings
    kept = tmp_path / f'{path.name}.fidelity.json'
    kept.write_text(kept.read_text().replace('"ctranslate2": "', '"ctranslate2": "0.'))
    assert not proven_fidelity(path, outputs_dir=tmp_path, device='cpu', threads=1).reused
    kept.write_text('{"rests_on": ')
    assert not proven_fidelity(path, outputs_dir=tmp_path, device='cpu', threads=1).reused
    assert proven_fidelity(path, outputs_dir=tmp_path, device='cpu').reused


def test_without_a_manifest_of_the_source_nothing_is_reused(demo, tmp_path):
    source = shutil.copytree(demo[0], tmp_path / 'demo')
    (source / MANIFEST_NAME).unlink()
    for _ in range(2): assert not proven_fidelity(demo[1]['float16'], source, tmp_path, device='cpu', threads=1).reused


# Too small a machine

SMALL = 100_000_000  # Bytes of memory

def test_with_too_little_memory_only_the_files_are_compared(demo):
    found = fidelity(demo[1]['float16'], device='cpu', memory=SMALL)
    assert found.ok and not found.heard and found.require() is found
    assert {finding.what for finding in found.findings} == {'architecture', 'settings', 'tokenizer', 'weights', 'spectrogram'}
    for text in (found.notes[0], found.verdict): assert re.search(r'needs about .+ of memory, 100 MB are available', text)
    assert found.verdict.startswith('⚠️') and found.compute_types == {}
    assert json.loads(found.to_json())['heard'] is False


def test_with_too_little_memory_wrong_weights_are_still_found(demo, harmed):
    found = fidelity(harmed(FAULTS['decoder: two rows of a query matrix'][0], 'int8'), demo[0], device='cpu', memory=SMALL)
    assert not found.ok and failed(found) == {'weights'} and 'NOT faithful' in found.verdict


def test_a_model_for_openai_whisper_on_a_small_machine(demo, tmp_path):
    pytest.importorskip('whisper.timing')
    found = fidelity(convert(demo[0], 'float16', tmp_path, format='openai').path, demo[0], device='cpu', memory=SMALL)
    assert found.ok and len(found.findings) == 5


def test_too_full_a_disk_is_no_failure_either(demo, monkeypatch):
    monkeypatch.setattr('whisper_nb.files.free_bytes', lambda path: 1000)
    assert 'on the disk' in compare(demo[1]['int8']).verdict
    assert compare(demo[1]['float16']).heard, 'which needs no model made for the moment'


def test_what_was_not_heard_is_heard_when_there_is_room(demo, tmp_path):
    path, options = demo[1]['float16'], dict(outputs_dir=tmp_path, device='cpu', threads=1)
    assert not proven_fidelity(path, memory=SMALL, **options).heard
    again = proven_fidelity(path, memory=SMALL, **options)
    assert again.reused and not again.heard and again.notes
    now = proven_fidelity(path, **options)
    assert now.heard and not now.reused
    assert proven_fidelity(path, memory=SMALL, **options).heard, 'what is proven stays so'


def test_prepare_goes_on_when_memory_is_short(demo, tmp_path, monkeypatch):
    monkeypatch.setattr('whisper_nb.fidelity.memory_available', lambda: SMALL)
    report = prepare('demo', quantization='int8', skip_test=True, models_dir=str(tmp_path / 'models'), outputs_dir=str(tmp_path / 'outputs'))
    assert report.ok and list((tmp_path / 'outputs').glob('*.tar.gz'))
    assert '⚠️' in report.results['models'][0]['fidelity']


# Pairs that cannot be compared number by number

def rename(path, name, other):
    "Give a variable of a model.bin another name of the same length."
    data = (path / 'model.bin').read_bytes()
    assert len(name) == len(other) and data.count(name.encode() + b'\0') == 1
    (path / 'model.bin').write_bytes(data.replace(name.encode() + b'\0', other.encode() + b'\0'))

def turn(path, name):
    "Exchange the axes of a matrix in a model.bin; its numbers stay."
    tensor, data = read_model_bin(path / 'model.bin').tensors[name], bytearray((path / 'model.bin').read_bytes())
    place = tensor.start - 4 - 1 - 4 * 2
    assert struct.unpack_from('<2I', data, place) == tensor.shape
    struct.pack_into('<2I', data, place, *tensor.shape[::-1])
    (path / 'model.bin').write_bytes(data)

BROKEN = { # What is done to a model.bin, what is said of it
    'a missing variable': ('float16', lambda path: rename(path, 'encoder/conv2/bias', 'encoder/conv2/bibs'), "'encoder/conv2/bias' is missing"),
    'a missing layer': ('float16', lambda path: rename(path, 'encoder/layer_3/ffn/linear_0/weight', 'encoder/layer_9/ffn/linear_0/weight'), 'not numbered from 0'),
    'missing factors of int8': ('int8', lambda path: rename(path, 'encoder/conv2/weight_scale', 'encoder/conv2/weighx_scale'), "'encoder/conv2/weight_scale' is missing"),
    'a missing factor of int16': ('int16', lambda path: rename(path, 'encoder/conv2/weight_scale', 'encoder/conv2/weight_scalf'), "'encoder/conv2/weight_scale' is missing"),
    'another shape': ('float16', lambda path: turn(path, 'encoder/layer_0/ffn/linear_1/weight'), 'has shape'),
    'a truncated file': ('float16', lambda path: (path / 'model.bin').write_bytes((path / 'model.bin').read_bytes()[:-1000]), 'too short'),
}

@pytest.mark.parametrize('fault', BROKEN)
def test_weights_that_are_not_all_there_are_a_finding(copied, demo, fault):
    quantization, harm, words = BROKEN[fault]
    path = copied(quantization)
    harm(path)
    found = compare(path, demo[0])
    assert [finding.what for finding in found.findings] == ['architecture'] and not found.ok
    assert words in found.problem


def test_a_model_pt_that_lacks_a_tensor(demo, tmp_path):
    torch = pytest.importorskip('torch')
    path = convert(demo[0], 'float16', tmp_path, format='openai').path
    content = torch.load(path / 'model.pt', weights_only=True)
    del content['model_state_dict']['encoder.conv2.bias']
    torch.save(content, path / 'model.pt')
    found = compare(path, demo[0])
    assert failed(found) == {'architecture'} and "'encoder.conv2.bias' is missing" in found.problem


def test_a_source_that_lacks_a_tensor_is_said(demo, tmp_path):
    source = shutil.copytree(demo[0], tmp_path / 'demo')
    tensors = load_file(source / 'model.safetensors')
    del tensors['model.encoder.conv2.bias']
    save_file(tensors, source / 'model.safetensors')
    with pytest.raises(FormatError, match="'model.encoder.conv2.bias' is missing"): compare(demo[1]['float16'], source)


def test_every_other_pair_ends_in_a_table_or_two_lines(demo, copied, tmp_path):
    "Files of the converted model and of its source, each made unfit in turn; what is raised is made for the reader."
    english = make_checkpoint(tmp_path / 'english', multilingual=False, languages=('en',))
    for source in (english, demo[1]['int8'], tmp_path, tmp_path / 'nowhere'):
        try: assert not compare(demo[1]['float16'], source).ok
        except WhisperNbError as error: assert error.what and error.advice
    path = copied()
    for name in ('config.json', 'tokenizer.json', 'vocabulary.json', 'preprocessor_config.json', 'manifest.json'):
        kept = (path / name).read_bytes()
        for data in (b'{', b'{"model": 1, "alignment_heads": 3, "feature_size": "x"}', None):
            if data is None: (path / name).unlink()
            else: (path / name).write_bytes(data)
            try: found = compare(path, demo[0])
            except WhisperNbError as error: assert error.what and error.advice
            else: assert not found.ok or data is None or name in ('manifest.json', 'preprocessor_config.json'), (name, data)  # faster-whisper does without the second where it says the usual
        (path / name).write_bytes(kept)


def test_a_source_that_is_not_there_is_said(copied):
    with pytest.raises(RequestError, match='is not there'): compare(copied())


# The command

def test_the_command_says_it_with_its_exit_code(whisper_nb, demo, copied):
    done = whisper_nb('fidelity', demo[1]['float16'], '--device', 'cpu')
    assert done.returncode == 0 and 'is faithful to demo' in done.stdout and 'encoder' in done.stdout, done.stderr
    path = copied()
    edit(path / 'config.json', alignment_heads=[[0, 0]])
    done = whisper_nb('fidelity', path, '--source', demo[0], '--device', 'cpu', '--json')
    assert done.returncode == 1
    assert json.loads(done.stdout)['ok'] is False
    done = whisper_nb('fidelity', demo[0])
    assert done.returncode == 2 and 'Traceback' not in done.stderr


def test_every_quantization_has_limits():
    assert {part for quantization in QUANTIZATIONS for part in quantization.split('_')} == set(LIMITS)
