"What is known of a GPU, and CUDA's libraries found and loaded, on machines without either."
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from time import sleep
from types import SimpleNamespace

import pytest

from whisper_nb import gpu
from whisper_nb.errors import MissingPackage
from whisper_nb.gpu import GPU, Meter, cuda_libraries, gpus, load_cuda_libraries


NEW = GPU('Simulated 100', 80_000_000_000, 'for CUDA 12.2', 0, '0000:01:00.0', (8, 0))


class SimulatedNVML:
    "Answers as pynvml does for one GPU: what it holds are the next figures of a list, then the last one."
    def __init__(self, used, own=None, energy=(), pid=None):
        self.used, self.own, self.energy, self.pid, self.started = list(used), list(own or ()), list(energy), pid or os.getpid(), 0
    def nvmlInit(self): self.started += 1
    def nvmlShutdown(self): self.started -= 1
    def nvmlDeviceGetHandleByPciBusId(self, address): return address
    def nvmlSystemGetDriverVersion(self): return '555.55'
    def nvmlDeviceGetMemoryInfo(self, handle): return SimpleNamespace(total=80_000_000_000, used=self.used.pop(0) if len(self.used) > 1 else self.used[0])
    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        others = [SimpleNamespace(pid=self.pid + 1, usedGpuMemory=7_000_000_000)]
        return others + [SimpleNamespace(pid=self.pid, usedGpuMemory=self.own.pop(0) if len(self.own) > 1 else self.own[0])] if self.own else others
    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        if not self.energy: raise RuntimeError('Not Supported')
        return self.energy.pop(0)


@pytest.fixture
def one_gpu(monkeypatch):
    "A driver that knows one GPU."
    monkeypatch.setattr(gpu, 'cuda_devices', lambda: (NEW,))


def fail(*_): raise RuntimeError('Not Supported')


def test_the_driver_has_a_version(one_gpu):
    library = SimulatedNVML([0])
    assert gpus(library) == (replace(NEW, driver='555.55'),) and library.started == 0
    assert repr(gpus(library)[0]) == 'Simulated 100, 80 GB, driver 555.55'


def test_a_gpu_stays_when_nvml_refuses(one_gpu):
    library = SimulatedNVML([0])
    library.nvmlSystemGetDriverVersion = fail
    assert gpus(library) == gpus(SimpleNamespace(nvmlInit=fail)) == (NEW,) and library.started == 0


@pytest.mark.parametrize('refused', ['nvmlInit', 'nvmlDeviceGetHandleByPciBusId'])
def test_no_answer_is_no_figure(one_gpu, refused):
    library = SimulatedNVML([9], own=[1_000], energy=[0, 1_000])
    setattr(library, refused, fail)
    with Meter('cuda', library) as meter: pass
    assert (meter.peak_memory, meter.energy, library.started) == (None, None, 0)


def test_one_figure_that_is_refused_leaves_the_others(one_gpu):
    library = SimulatedNVML([9], own=[1_000], energy=[0, 1_000])
    library.nvmlDeviceGetMemoryInfo = fail
    with Meter('cuda', library) as meter: pass
    assert (meter.peak_memory, meter.energy) == (1_000, 1.0)


def test_energy_alone_takes_no_looks(one_gpu):
    library = SimulatedNVML([9], own=[1_000], energy=[0, 1_000])
    library.nvmlDeviceGetMemoryInfo = lambda _: pytest.fail('looked')
    with Meter('cuda', library, memory=False) as meter: pass
    assert (meter.peak_memory, meter.energy, meter._watcher) == (None, 1.0, None)


def test_the_memory_of_this_process_and_the_energy(one_gpu):
    library = SimulatedNVML([9], own=[1_000, 5_000, 2_000], energy=[10_000, 12_500])
    with Meter('cuda', library) as meter: sleep(0.3)
    assert (meter.peak_memory, meter.energy, library.started) == (5_000, 2.5, 0)


@pytest.mark.parametrize('own', [None, [None]], ids=['not listed', 'not said'])
def test_where_processes_are_not_told_apart_it_is_what_was_added(one_gpu, own):
    library = SimulatedNVML([1_000, 4_000, 3_000], own=own)
    with Meter('cuda', library) as meter: sleep(0.3)
    assert (meter.peak_memory, meter.energy) == (3_000, None)


def test_the_meter_stops_when_the_work_fails(one_gpu):
    library = SimulatedNVML([1_000], energy=[0, 1_000])
    with pytest.raises(ZeroDivisionError), Meter('cuda', library) as meter: 1/0
    assert meter.energy == 1.0 and library.started == 0 and not meter._watcher.is_alive()


def test_on_the_cpu_nobody_is_asked():
    with Meter('cpu', SimpleNamespace()) as meter: pass
    assert (meter.peak_memory, meter.energy) == (None, None)


# ---- the driver

DRIVER = """
#include <stdio.h>
#include <stdlib.h>
static int number(const char *name) { return atoi(getenv(name)); }
int cuInit(unsigned flags) { return number("DEVICES") ? 0 : 100; }
int cuDriverGetVersion(int *version) { *version = number("CUDA"); return 0; }
int cuDeviceGetCount(int *count) { *count = number("DEVICES"); return 0; }
int cuDeviceGet(int *device, int place) { *device = place + 3; return 0; }
int cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "Simulated %d", 97 + device); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 80000000000; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? number("CAPABILITY") : 0; return 0; }
int cuDeviceGetPCIBusId(char *address, int length, int device) { snprintf(address, length, "0000:%02x:00.0", device - 2); return 0; }
"""
KNOWN = """
import json
from whisper_nb import gpu, transformers_engine, verify
devices = [[each.name, each.memory, each.driver, each.index, each.address, each.capability] for each in gpu.cuda_devices()]
print(json.dumps(dict(devices=devices, torch=gpu.cuda_problem('torch'), ctranslate2=gpu.cuda_problem('ctranslate2'), torch_devices=verify.torch_devices(), types=transformers_engine.torch_types())))
"""


@pytest.fixture
def known(tmp_path):
    "What is known with this driver and this build of torch, found out in a child."
    if sys.platform != 'linux' or not shutil.which('cc'): pytest.skip('makes a shared library for Linux')
    (tmp_path/'driver.c').write_text(DRIVER)
    subprocess.run(['cc', '-shared', '-fPIC', '-o', tmp_path/'libcuda.so.1', tmp_path/'driver.c'], check=True)
    (tmp_path/'torch').mkdir()
    (tmp_path/'torch'/'__init__.py').touch()
    def known(devices=1, cuda=12020, capability=8, build="'12.8'", **more):
        (tmp_path/'torch'/'version.py').write_text(f'cuda: Optional[str] = {build}\n')
        environment = os.environ | dict(LD_LIBRARY_PATH=str(tmp_path), PYTHONPATH=str(tmp_path), DEVICES=str(devices), CUDA=str(cuda), CAPABILITY=str(capability)) | more
        done = subprocess.run([sys.executable, '-c', KNOWN], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    return known


def test_the_driver_lists_its_gpus(known):
    found = known(devices=2)
    assert found['devices'] == [['Simulated 100', 80_000_000_000, 'for CUDA 12.2', 0, '0000:01:00.0', [8, 0]], ['Simulated 101', 80_000_000_000, 'for CUDA 12.2', 1, '0000:02:00.0', [8, 0]]]
    assert (found['torch'], found['torch_devices']) == ('', ['cpu', 'cuda']) and 'bfloat16' in found['types']['cuda']


def test_hidden_gpus_are_not_there(known):
    found = known(devices=0, CUDA_VISIBLE_DEVICES='')
    assert (found['devices'], found['torch_devices']) == ([], ['cpu'])
    assert found['torch'] == found['ctranslate2'] == "the NVIDIA driver shows no GPU (CUDA_VISIBLE_DEVICES is '')"


def test_a_driver_older_than_the_build(known):
    found = known(build="'13.0'")
    assert found['torch'] == 'the NVIDIA driver knows CUDA 12, torch is a build for CUDA 13' and found['torch_devices'] == ['cpu'] and len(found['devices']) == 1
    found = known(cuda=11080)
    assert found['torch'].endswith('torch is a build for CUDA 12') and found['ctranslate2'].endswith('CTranslate2 is a build for CUDA 12')
    assert known(build='None')['torch'] == 'torch is a build for the CPU'


def test_older_gpus_have_no_bfloat16(known):
    found = known(capability=7)['types']
    assert found['cuda'] == ['float32', 'float16'] and 'bfloat16' in found['cpu']


# ---- CUDA's libraries

def test_a_missing_library_is_named_with_its_package(tmp_path):
    (tmp_path/'binary').write_bytes(b'\0libcuda.so.1\0libcublas.so.912\0libcudnn.so.909\0')
    wanted = cuda_libraries([tmp_path], tmp_path/'binary')
    assert [(each.name, each.path) for each in wanted] == [('libcublas.so.912', None), ('libcudnn.so.909', None)]
    with pytest.raises(MissingPackage, match='libcublas.so.912 and libcudnn.so.909') as caught: load_cuda_libraries(wanted)
    assert all(words in caught.value.advice for words in ('pip install nvidia-cublas nvidia-cudnn ', "pip install 'whisper_nb[cuda]'", '--device cpu'))


def test_the_ways_of_the_system_are_looked_at(tmp_path, monkeypatch):
    (tmp_path/'binary').write_bytes(b'libcublas.so.912')
    (tmp_path/'libcublas.so.912').write_bytes(b'')
    monkeypatch.setenv('LD_LIBRARY_PATH', f'/nowhere:{tmp_path}')
    assert cuda_libraries([], tmp_path/'binary')[0].path == str(tmp_path/'libcublas.so.912')


def test_nothing_is_wanted_by_a_build_for_the_cpu(tmp_path):
    (tmp_path/'binary').write_bytes(b'libgomp.so.1')
    assert cuda_libraries(binary=tmp_path/'binary') == () and load_cuda_libraries(()) == ()


BY_NAME = """
import ctypes, sys
from pathlib import Path
from whisper_nb.gpu import cuda_libraries, load_cuda_libraries
try: ctypes.CDLL('libcublas.so.912')
except OSError: print('not before')
load_cuda_libraries(cuda_libraries([sys.argv[1]], Path(sys.argv[1])/'binary'))
print(ctypes.CDLL('libcublas.so.912').answer())
"""


@pytest.mark.skipif(sys.platform != 'linux' or not shutil.which('cc'), reason='makes a shared library for Linux')
def test_what_is_in_a_pip_package_is_then_found_by_its_name(tmp_path):
    "With its second half beside it, which the system would not find either."
    folder = tmp_path/'nvidia'/'cublas'/'lib'
    folder.mkdir(parents=True)
    (tmp_path/'half.c').write_text('int half(void) { return 21; }')
    (tmp_path/'whole.c').write_text('int half(void); int answer(void) { return 2*half(); }')
    (tmp_path/'binary').write_bytes(b'libcublas.so.912')
    for source, name, more in (('half', 'libcublasLt.so.912', []), ('whole', 'libcublas.so.912', [folder/'libcublasLt.so.912'])):
        subprocess.run(['cc', '-shared', '-fPIC', f'-Wl,-soname,{name}', '-o', folder/name, tmp_path/f'{source}.c', *more], check=True)
    done = subprocess.run([sys.executable, '-c', BY_NAME, tmp_path], capture_output=True, text=True)
    assert done.stdout.split('\n')[:2] == ['not before', '42'], done.stderr
