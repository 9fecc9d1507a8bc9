//! NCCL and the driver themselves, through functions taken from the opened libraries.
//!
//! cudarc has bindings too; they look for `libnccl.so` only, while NVIDIA's packages install `libnccl.so.2`, and they
//! panic where a library or function is missing. So the twenty-odd functions that are needed are declared here.
//!
//! **Nothing in this file has run on a GPU yet** but the search for the library, its version and its functions.

#![expect(unsafe_code, reason = "calls NCCL and the CUDA driver, which are libraries of C")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ops::Range;
use std::ptr;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::{NcclError, Progress, Raw, RawError, Span, UNIQUE_ID_BYTES, UniqueId};
use crate::Library;
use crate::library::functions;

/// The oldest NCCL that has communicators which do not block, and their configuration as it is filled in here: 2.18.
pub const MIN_VERSION: i32 = 21800;

type Context = *mut c_void;
type Stream = *mut c_void;
type CommPointer = *mut c_void;

functions! {
    /// What is used of the driver. A result of 0 is success.
    Driver {
        init: "cuInit", fn(c_uint) -> c_int;
        device: "cuDeviceGet", fn(*mut c_int, c_int) -> c_int;
        retain: "cuDevicePrimaryCtxRetain", fn(*mut Context, c_int) -> c_int;
        release: "cuDevicePrimaryCtxRelease_v2", fn(c_int) -> c_int;
        set_current: "cuCtxSetCurrent", fn(Context) -> c_int;
        create_stream: "cuStreamCreate", fn(*mut Stream, c_uint) -> c_int;
        destroy_stream: "cuStreamDestroy_v2", fn(Stream) -> c_int;
        query_stream: "cuStreamQuery", fn(Stream) -> c_int;
        synchronize_stream: "cuStreamSynchronize", fn(Stream) -> c_int;
        allocate: "cuMemAlloc_v2", fn(*mut u64, usize) -> c_int;
        free: "cuMemFree_v2", fn(u64) -> c_int;
        upload: "cuMemcpyHtoDAsync_v2", fn(u64, *const c_void, usize, Stream) -> c_int;
        download: "cuMemcpyDtoHAsync_v2", fn(*mut c_void, u64, usize, Stream) -> c_int;
        copy: "cuMemcpyDtoDAsync_v2", fn(u64, u64, usize, Stream) -> c_int;
        load_module: "cuModuleLoadData", fn(*mut *mut c_void, *const c_void) -> c_int;
        function: "cuModuleGetFunction", fn(*mut *mut c_void, *mut c_void, *const c_char) -> c_int;
        launch: "cuLaunchKernel", fn(*mut c_void, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Stream, *mut *mut c_void, *mut *mut c_void) -> c_int;
        error_name: "cuGetErrorName", fn(c_int, *mut *const c_char) -> c_int;
    }
}

functions! {
    /// What is used of NCCL. A result of 0 is success, 7 means that it goes on.
    Calls {
        unique_id: "ncclGetUniqueId", fn(*mut RawId) -> c_int;
        init: "ncclCommInitRankConfig", fn(*mut CommPointer, c_int, RawId, c_int, *mut Config) -> c_int;
        async_error: "ncclCommGetAsyncError", fn(CommPointer, *mut c_int) -> c_int;
        abort: "ncclCommAbort", fn(CommPointer) -> c_int;
        group_start: "ncclGroupStart", fn() -> c_int;
        group_end: "ncclGroupEnd", fn() -> c_int;
        send: "ncclSend", fn(*const c_void, usize, c_int, c_int, CommPointer, Stream) -> c_int;
        receive: "ncclRecv", fn(*mut c_void, usize, c_int, c_int, CommPointer, Stream) -> c_int;
        all_reduce: "ncclAllReduce", fn(*const c_void, *mut c_void, usize, c_int, c_int, CommPointer, Stream) -> c_int;
        error_string: "ncclGetErrorString", fn(c_int) -> *const c_char;
        last_error: "ncclGetLastError", fn(CommPointer) -> *const c_char;
    }
}

const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
const CUDA_ERROR_NOT_READY: c_int = 600;
const FLOAT32: c_int = 7;
const SUM: c_int = 0;

/// `ncclUniqueId`, passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawId([u8; UNIQUE_ID_BYTES]);

/// `ncclConfig_t` as of NCCL 2.18. Newer libraries take it by its `size` and `version` and set the rest themselves.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// `NCCL_CONFIG_INITIALIZER`, but that calls do not block.
    fn not_blocking() -> Self {
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: MIN_VERSION as c_uint,
            blocking: 0,
            cga_cluster_size: c_int::MIN,
            min_ctas: c_int::MIN,
            max_ctas: c_int::MIN,
            net_name: ptr::null(),
            split_share: c_int::MIN,
        }
    }
}

/// Opens NCCL, and checks its version and that it has what is needed. Returns the version, as `2.30.7`, and its path.
///
/// # Errors
/// When it is missing, too old, or lacks a function.
pub fn check_library() -> Result<(String, String), NcclError> {
    let (library, version) = open()?;
    Calls::load(&library)?;
    Ok((version_text(version), library.path()))
}

fn open() -> Result<(Library, c_int), NcclError> {
    let library = Library::open("NCCL", &["libnccl.so.2", "libnccl.so"])?;
    // SAFETY: the type is that of nccl.h.
    let get_version: unsafe extern "C" fn(*mut c_int) -> c_int = unsafe { library.function("ncclGetVersion")? };
    let mut version = 0;
    // SAFETY: the pointer is valid for the call.
    let code = unsafe { get_version(&mut version) };
    if code != SUCCESS {
        let source = RawError { call: "ncclGetVersion", code, text: "the library is broken".to_owned() };
        return Err(NcclError::Failed { doing: "asking for its version", source });
    }
    if version < MIN_VERSION {
        let (found, needed) = (version_text(version), version_text(MIN_VERSION));
        return Err(NcclError::TooOld { path: library.path(), found, needed });
    }
    Ok((library, version))
}

/// 23007 is 2.30.7; before 2.9 it was 2708 for 2.7.8.
fn version_text(version: c_int) -> String {
    let unit = if version < 10_000 { 1000 } else { 10_000 };
    format!("{}.{}.{}", version / unit, version % unit / 100, version % 100)
}

/// NCCL on one GPU, with a stream of its own in the device's primary context, which burn uses too.
#[derive(Clone)]
pub struct Nccl(Arc<Inner>);

struct Inner {
    driver: Driver,
    calls: Calls,
    device: c_int,
    context: Context,
    stream: Stream,
    add: *mut c_void,
    began: Instant,
}

// SAFETY: handles of the driver and of NCCL may be used from any thread; each call sets the context first. NCCL wants the
// calls on one communicator one after another, which `Group` ensures by `&mut`.
unsafe impl Send for Inner {}
// SAFETY: as above; the struct itself does not change.
unsafe impl Sync for Inner {}

/// A communicator.
pub struct Comm(CommPointer);

// SAFETY: as for `Inner`.
unsafe impl Send for Comm {}

/// `f32` values on the device.
pub struct Buffer {
    address: u64,
    elements: usize,
    owner: Option<Arc<Inner>>,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(inner) = &self.owner {
            inner.enter();
            // SAFETY: the address came from cuMemAlloc and is freed once. The driver waits for work that uses it.
            unsafe { (inner.driver.free)(self.address) };
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.enter();
        // SAFETY: stream and context were made by `Nccl::new`, and nothing uses them any more.
        unsafe {
            (self.driver.destroy_stream)(self.stream);
            (self.driver.release)(self.device);
        }
    }
}

impl Inner {
    /// Makes the context current on this thread.
    fn enter(&self) {
        // SAFETY: the context is retained as long as `self` lives.
        unsafe { (self.driver.set_current)(self.context) };
    }

    fn driver_result(&self, call: &'static str, code: c_int) -> Result<(), RawError> {
        if code == SUCCESS { Ok(()) } else { Err(driver_error(&self.driver, call, code)) }
    }

    fn nccl_result(&self, call: &'static str, comm: CommPointer, code: c_int) -> Result<(), RawError> {
        if code == SUCCESS || code == IN_PROGRESS {
            return Ok(());
        }
        // SAFETY: both return texts that the library keeps; a null communicator is allowed.
        let (what, why) = unsafe { (text((self.calls.error_string)(code)), text((self.calls.last_error)(comm))) };
        Err(RawError { call, code, text: if why.is_empty() { what } else { format!("{what}: {why}") } })
    }
}

fn driver_error(driver: &Driver, call: &'static str, code: c_int) -> RawError {
    let mut name = ptr::null();
    // SAFETY: the pointer is valid for the call; the name is the library's own.
    let text = unsafe {
        (driver.error_name)(code, &mut name);
        text(name)
    };
    RawError { call, code, text }
}

/// # Safety
/// `pointer` is null or a text that ends with a zero.
unsafe fn text(pointer: *const c_char) -> String {
    // SAFETY: as promised by the caller.
    if pointer.is_null() { String::new() } else { unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned() }
}

impl Nccl {
    /// Opens NCCL for the GPU of this number, as CUDA counts them.
    ///
    /// # Errors
    /// When NCCL or the driver is missing or too old, or the GPU cannot be used.
    pub fn new(device_index: u32) -> Result<Self, NcclError> {
        let (library, _) = open()?;
        let calls = Calls::load(&library)?;
        let driver = Driver::load(&Library::open("the NVIDIA driver", &["libcuda.so.1", "libcuda.so"])?)?;
        let failed = |source| NcclError::Failed { doing: "preparing the GPU", source };
        let check = |call, code| if code == SUCCESS { Ok(()) } else { Err(failed(driver_error(&driver, call, code))) };
        let (mut device, mut context, mut stream) = (0, ptr::null_mut(), ptr::null_mut());
        let (mut module, mut add) = (ptr::null_mut(), ptr::null_mut());
        let source = [include_str!("add.ptx"), "\0"].concat();
        // SAFETY: every pointer is valid for its call, the texts end with a zero, and each call's input is what an
        // earlier one made. 1: a stream that does not wait for the default one.
        unsafe {
            check("cuInit", (driver.init)(0))?;
            check("cuDeviceGet", (driver.device)(&mut device, device_index as c_int))?;
            check("cuDevicePrimaryCtxRetain", (driver.retain)(&mut context, device))?;
            check("cuCtxSetCurrent", (driver.set_current)(context))?;
            check("cuStreamCreate", (driver.create_stream)(&mut stream, 1))?;
            check("cuModuleLoadData", (driver.load_module)(&mut module, source.as_ptr().cast()))?;
            check("cuModuleGetFunction", (driver.function)(&mut add, module, c"ballast_add".as_ptr()))?;
        }
        Ok(Self(Arc::new(Inner { driver, calls, device, context, stream, add, began: Instant::now() })))
    }
}

impl Buffer {
    fn at(&self, range: &Range<usize>) -> u64 {
        assert!(range.start <= range.end && range.end <= self.elements, "the range lies within the buffer");
        self.address + (range.start * size_of::<f32>()) as u64
    }
}

impl Raw for Nccl {
    type Comm = Comm;
    type Buffer = Buffer;

    fn make_id(&self) -> Result<UniqueId, RawError> {
        let mut id = RawId([0; UNIQUE_ID_BYTES]);
        // SAFETY: the pointer is valid for the call.
        let code = unsafe { (self.0.calls.unique_id)(&mut id) };
        self.0.nccl_result("ncclGetUniqueId", ptr::null_mut(), code)?;
        Ok(UniqueId(id.0))
    }

    fn start_comm(&self, id: &UniqueId, world_size: u32, rank: u32) -> Result<Comm, RawError> {
        self.0.enter();
        let (mut comm, mut config) = (ptr::null_mut(), Config::not_blocking());
        let (world_size, rank) = (world_size as c_int, rank as c_int);
        // SAFETY: the pointers are valid for the call; the library copies the configuration.
        let code = unsafe { (self.0.calls.init)(&mut comm, world_size, RawId(id.0), rank, &mut config) };
        self.0.nccl_result("ncclCommInitRankConfig", comm, code)?;
        Ok(Comm(comm))
    }

    fn comm_progress(&self, comm: &Comm) -> Result<Progress, RawError> {
        let mut state = SUCCESS;
        // SAFETY: the communicator lives until `abort` takes it.
        let code = unsafe { (self.0.calls.async_error)(comm.0, &mut state) };
        self.0.nccl_result("ncclCommGetAsyncError", comm.0, code)?;
        self.0.nccl_result("a call before", comm.0, state)?;
        Ok(if state == IN_PROGRESS { Progress::Running } else { Progress::Done })
    }

    fn stream_progress(&self) -> Result<Progress, RawError> {
        self.0.enter();
        // SAFETY: the stream lives as long as `self`.
        match unsafe { (self.0.driver.query_stream)(self.0.stream) } {
            CUDA_ERROR_NOT_READY => Ok(Progress::Running),
            code => self.0.driver_result("cuStreamQuery", code).map(|()| Progress::Done),
        }
    }

    fn start_group(&self) -> Result<(), RawError> {
        self.0.enter();
        // SAFETY: groups are per thread, and every one that is begun is ended.
        self.0.nccl_result("ncclGroupStart", ptr::null_mut(), unsafe { (self.0.calls.group_start)() })
    }

    fn end_group(&self) -> Result<(), RawError> {
        // SAFETY: as above.
        self.0.nccl_result("ncclGroupEnd", ptr::null_mut(), unsafe { (self.0.calls.group_end)() })
    }

    fn send(&self, comm: &Comm, from: &Buffer, range: Range<usize>, peer: u32) -> Result<(), RawError> {
        let address = from.at(&range) as *const c_void;
        // SAFETY: the range lies within memory of the device, which the caller keeps until the stream is done.
        let code = unsafe { (self.0.calls.send)(address, range.len(), FLOAT32, peer as c_int, comm.0, self.0.stream) };
        self.0.nccl_result("ncclSend", comm.0, code)
    }

    fn receive(&self, comm: &Comm, to: &Buffer, range: Range<usize>, peer: u32) -> Result<(), RawError> {
        let address = to.at(&range) as *mut c_void;
        // SAFETY: as for `send`.
        let code =
            unsafe { (self.0.calls.receive)(address, range.len(), FLOAT32, peer as c_int, comm.0, self.0.stream) };
        self.0.nccl_result("ncclRecv", comm.0, code)
    }

    fn all_reduce(&self, comm: &Comm, buffer: &Buffer, range: Range<usize>) -> Result<(), RawError> {
        self.0.enter();
        let address = buffer.at(&range) as *mut c_void;
        // SAFETY: as for `send`; NCCL allows the result to take the input's place.
        let code =
            unsafe { (self.0.calls.all_reduce)(address, address, range.len(), FLOAT32, SUM, comm.0, self.0.stream) };
        self.0.nccl_result("ncclAllReduce", comm.0, code)
    }

    fn abort(&self, comm: Comm, limit: Duration) -> bool {
        let inner = Arc::clone(&self.0);
        let (tell, told) = mpsc::channel();
        // A thread of its own, since the call is known to hang at times; it then stays behind with what it holds.
        let spawned = thread::Builder::new().name("nccl-abort".to_owned()).spawn(move || {
            let comm = comm;
            inner.enter();
            // SAFETY: nobody else has the communicator any more.
            unsafe { (inner.calls.abort)(comm.0) };
            let _ = tell.send(());
        });
        spawned.is_ok() && told.recv_timeout(limit).is_ok()
    }

    fn allocate(&self, elements: usize) -> Result<Buffer, RawError> {
        self.0.enter();
        let mut address = 0;
        // SAFETY: the pointer is valid for the call. The driver refuses to allocate nothing.
        let code = unsafe { (self.0.driver.allocate)(&mut address, elements.max(1) * size_of::<f32>()) };
        self.0.driver_result("cuMemAlloc", code)?;
        Ok(Buffer { address, elements, owner: Some(Arc::clone(&self.0)) })
    }

    fn len(&self, buffer: &Buffer) -> usize {
        buffer.elements
    }

    fn upload(&self, from: &[f32], to: &Buffer, start: usize) -> Result<(), RawError> {
        self.0.enter();
        let address = to.at(&(start..start + from.len()));
        // SAFETY: both ranges are valid, and `from` is borrowed until the stream is done.
        let code = unsafe { (self.0.driver.upload)(address, from.as_ptr().cast(), size_of_val(from), self.0.stream) };
        self.0.driver_result("cuMemcpyHtoD", code)?;
        self.synchronize()
    }

    fn download(&self, from: &Buffer, start: usize, to: &mut [f32]) -> Result<(), RawError> {
        self.0.enter();
        let address = from.at(&(start..start + to.len()));
        // SAFETY: as for `upload`.
        let code = unsafe { (self.0.driver.download)(to.as_mut_ptr().cast(), address, size_of_val(to), self.0.stream) };
        self.0.driver_result("cuMemcpyDtoH", code)?;
        self.synchronize()
    }

    fn add(&self, left: (&Buffer, usize), right: (&Buffer, usize), count: usize) -> Result<(), RawError> {
        self.0.enter();
        let (mut left, mut right) = (left.0.at(&(left.1..left.1 + count)), right.0.at(&(right.1..right.1 + count)));
        let mut count = count as u64;
        let mut arguments = [(&raw mut left).cast(), (&raw mut right).cast(), (&raw mut count).cast()];
        // Blocks of 256 threads; more than 4096 of them gain nothing, the kernel loops.
        let blocks = count.div_ceil(256).clamp(1, 4096) as c_uint;
        // SAFETY: the arguments are the three of add.ptx, and the driver copies them; the ranges lie within the buffers.
        let code = unsafe {
            (self.0.driver.launch)(
                self.0.add,
                blocks,
                1,
                1,
                256,
                1,
                1,
                0,
                self.0.stream,
                arguments.as_mut_ptr(),
                ptr::null_mut(),
            )
        };
        self.0.driver_result("cuLaunchKernel", code)
    }

    fn copy(&self, from: (&Buffer, usize), to: (&Buffer, usize), count: usize) -> Result<(), RawError> {
        self.0.enter();
        let (source, target) = (from.0.at(&(from.1..from.1 + count)), to.0.at(&(to.1..to.1 + count)));
        // SAFETY: both ranges lie within memory of the device, which the caller keeps until the stream is done.
        let code = unsafe { (self.0.driver.copy)(target, source, count * size_of::<f32>(), self.0.stream) };
        self.0.driver_result("cuMemcpyDtoD", code)
    }

    fn lent(&self, span: &Span) -> Option<Buffer> {
        Some(Buffer { address: span.address(), elements: span.elements(), owner: None })
    }

    fn now(&self) -> Duration {
        self.0.began.elapsed()
    }

    fn pause(&self, moment: Duration) {
        thread::sleep(moment);
    }
}

impl Nccl {
    /// Waits for copies, which need no peer.
    fn synchronize(&self) -> Result<(), RawError> {
        // SAFETY: the stream lives as long as `self`.
        self.0.driver_result("cuStreamSynchronize", unsafe { (self.0.driver.synchronize_stream)(self.0.stream) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_nvidia_writes_them() {
        assert_eq!([23007, 21805, 2708].map(version_text), ["2.30.7", "2.18.5", "2.7.8"]);
    }

    /// `ncclConfig_t` of NCCL 2.18: nccl.h, compiled by a C compiler, says 48, 16, 32 and 40.
    #[test]
    fn the_configuration_is_laid_out_as_in_the_header() {
        assert_eq!(size_of::<Config>(), 48);
        assert_eq!(std::mem::offset_of!(Config, blocking), 16);
        assert_eq!(std::mem::offset_of!(Config, net_name), 32);
        assert_eq!(std::mem::offset_of!(Config, split_share), 40);
    }
}
