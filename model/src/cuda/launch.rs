//! The last thin layer above a GPU: CubeCL's client with our kernels in it.
//!
//! CubeCL compiles a kernel that brings its own text by NVRTC when it is first launched, keeps it by its [`KernelId`] (in
//! memory, and on the disk where its configuration says so), and launches it on the stream of the calling thread, after
//! whatever that thread launched before. Buffers are CubeCL's: freed ones are used again without a word to the driver.
//! Nothing here waits for the device but [`Gpu::download`], [`Gpu::sync`] and [`Gpu::address`] (for the thread that owns
//! the device, not for its stream).
//!
//! What cannot be compiled or launched fails where its results are read: [`Gpu::download`] or [`Gpu::sync_buffers`].

use ballast_kernels::Kernel;
use cubecl::cuda::CudaRuntime;
use cubecl::device::DeviceId;
use cubecl::ir::metadata::Info;
use cubecl::prelude::*;
use cubecl::server::{Handle, KernelArguments};
use cubecl_runtime::runtime::Runtime;
use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;

type Server = <CudaRuntime as Runtime>::Server;

/// What went wrong on a device, or in compiling for it.
#[derive(Debug, thiserror::Error)]
#[error("the GPU could not {attempt}: {reason}")]
pub(crate) struct GpuError {
    /// What was attempted.
    attempt: &'static str,
    /// What CubeCL says.
    reason: String,
}

impl GpuError {
    fn new(attempt: &'static str, reason: impl std::fmt::Display) -> Self {
        Self { attempt, reason: reason.to_string() }
    }
}

/// A CUDA device: its memory and the calling thread's stream. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Gpu {
    client: Client,
}

/// Memory of a device; freed for others when the last clone is gone and the stream is done with it.
#[derive(Clone, Debug)]
pub(crate) struct Buffer {
    handle: Handle,
}

/// A device's address, valid while this lives: the memory is neither freed nor moved.
pub(crate) struct Address {
    /// The address.
    pub(crate) pointer: u64,
    _held: Box<dyn Any>,
}

/// A buffer that is given to a kernel.
#[derive(Clone, Copy)]
pub(crate) enum Argument<'a> {
    /// The kernel only reads it.
    Read(&'a Buffer),
    /// The kernel only writes it.
    Write(&'a Buffer),
    /// The kernel reads and writes it.
    Change(&'a Buffer),
}

impl Buffer {
    /// Takes a handle of CubeCL's as it is.
    pub(crate) fn of(handle: Handle) -> Self {
        Self { handle }
    }

    /// CubeCL's handle.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The size in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.handle.size_in_used()
    }

    /// A part of the same memory.
    ///
    /// # Panics
    ///
    /// When the part is not within the buffer.
    pub(crate) fn part(&self, start: u64, bytes: u64) -> Self {
        let after = self.bytes().checked_sub(start + bytes).expect("the part is within the buffer");
        Self { handle: self.handle.clone().offset_start(start).offset_end(after) }
    }
}

impl Gpu {
    /// The device of a client that burn has.
    pub(crate) fn of(client: Client) -> Self {
        Self { client }
    }

    /// CubeCL's client.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Memory with anything in it, at a multiple of 256 bytes.
    pub(crate) fn alloc(&self, bytes: u64) -> Buffer {
        Buffer { handle: self.client.empty(usize::try_from(bytes).expect("a size of this machine")) }
    }

    /// Memory for as long as the process runs: an allocation of its own size, which CubeCL neither moves nor hands out.
    pub(crate) fn alloc_persistent(&self, bytes: u64) -> Buffer {
        self.client.memory_persistent_allocation(bytes, |bytes| self.alloc(bytes))
    }

    /// New memory with these bytes.
    pub(crate) fn upload(&self, bytes: &[u8]) -> Buffer {
        Buffer { handle: self.client.create_from_slice(bytes) }
    }

    /// Writes to the start of `buffer`, after what was launched before.
    ///
    /// # Panics
    ///
    /// When there are more bytes than the buffer holds.
    pub(crate) fn write(&self, buffer: &Buffer, bytes: Vec<u8>) {
        assert!(bytes.len() as u64 <= buffer.bytes(), "{} bytes into {}", bytes.len(), buffer.bytes());
        let to = buffer.part(0, bytes.len() as u64);
        self.client.write(&to.handle, cubecl::bytes::Bytes::from_bytes_vec(bytes));
    }

    /// Waits for what was launched, and brings the bytes here.
    pub(crate) fn download(&self, buffer: &Buffer) -> Result<Vec<u8>, GpuError> {
        let bytes = self.client.read_one(buffer.handle.clone());
        bytes.map(|bytes| bytes.to_vec()).map_err(|error| GpuError::new("hand out a buffer", error))
    }

    /// Waits for all that this thread launched.
    pub(crate) fn sync(&self) -> Result<(), GpuError> {
        self.sync_buffers(&[])
    }

    /// [`sync`](Self::sync); an error also when what should have written one of these failed to compile or to launch.
    pub(crate) fn sync_buffers(&self, buffers: &[&Buffer]) -> Result<(), GpuError> {
        let waiting = self.client.sync_buffers(buffers.iter().map(|buffer| &buffer.handle));
        cubecl::future::block_on(waiting).map_err(|error| GpuError::new("finish its work", error))
    }

    /// Where a buffer is, for a library that works on addresses. It has to order itself after this stream's work
    /// ([`sync`](Self::sync)).
    pub(crate) fn address(&self, buffer: &Buffer) -> Result<Address, GpuError> {
        let resource = self.client.get_resource::<Server>(buffer.handle.clone());
        let resource = resource.map_err(|error| GpuError::new("say where a buffer is", error))?;
        Ok(Address { pointer: resource.resource().ptr, _held: Box::new(resource) })
    }

    /// Launches a kernel on this thread's stream. Returns before it runs.
    pub(crate) fn launch(&self, kernel: &'static Kernel, grid: [u32; 3], arguments: &[Argument<'_>]) {
        let mut bindings = KernelArguments::new();
        for argument in arguments {
            let (buffer, io) = match argument {
                Argument::Read(buffer) => (buffer, BufferIOAttr::ReadOnly),
                Argument::Write(buffer) => (buffer, BufferIOAttr::WriteOnly),
                Argument::Change(buffer) => (buffer, BufferIOAttr::ReadWrite),
            };
            bindings = bindings.with_buffer_io(buffer.handle.clone().binding(), io);
        }
        let [x, y, z] = grid;
        self.client.launch(Box::new(Text(kernel)), CubeCount::Static(x, y, z), bindings);
    }

    /// A buffer with these few bytes that nobody writes: uploaded once per thread and device.
    ///
    /// An operation's settings are the same in every step. Kept per thread, since a buffer belongs to the stream of the
    /// thread that made it and another's would wait for it.
    pub(crate) fn constant(&self, bytes: &[u8]) -> Buffer {
        thread_local! {
            static CONSTANTS: RefCell<HashMap<(DeviceId, Vec<u8>), Buffer>> = RefCell::default();
        }
        let key = (self.client.service_id().device, bytes.to_vec());
        CONSTANTS.with_borrow_mut(|constants| constants.entry(key).or_insert_with(|| self.upload(bytes)).clone())
    }
}

/// One of our kernels as CubeCL takes it.
struct Text(&'static Kernel);

impl KernelMetadata for Text {
    fn name(&self) -> &'static str {
        &self.0.name
    }

    fn id(&self) -> KernelId {
        let block = CubeDim::new_1d(self.0.threads).0;
        KernelId::new::<Self>().info((self.0.name.as_str(), self.0.fingerprint)).cube_dim(block)
    }

    fn address_type(&self) -> ElemType {
        cubecl::ir::UIntKind::U32.into()
    }
}

impl CubeKernel for Text {
    /// Nothing to expand: CubeCL asks for this before it asks for the text.
    fn define(&self) -> KernelDefinition {
        let block = CubeDim::new_1d(self.0.threads).0;
        let settings = KernelSettings::new(block, ExecutionMode::Checked, AddressType::U32);
        KernelDefinition { body: Scope::root(settings.clone()), settings, info: Info::default() }
    }

    fn source(&self) -> Option<PrecompiledSource> {
        Some(PrecompiledSource {
            source: self.0.source.clone(),
            entrypoint_name: self.0.entry.to_owned(),
            lang: "cuda",
        })
    }
}
