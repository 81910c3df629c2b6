//! The calls themselves: every handle in a type that gives it back, every status an error.
//!
//! The functions of `cl3` are used directly; the wrappers above them panic when a release fails, which a lost device
//! makes normal. Here a failed release is passed over: there is nothing left to do about it.

#![allow(unsafe_code)]

use crate::error::{Error, failed};
use cl3::info_type::InfoType;
use cl3::types::{
    cl_command_queue, cl_context, cl_device_id, cl_event, cl_kernel, cl_mem, cl_platform_id, cl_program,
};
use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::time::Duration;

/// A platform's handle; they live as long as the process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlatformId(cl_platform_id);

/// A device's handle. Root devices live as long as the process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceId(cl_device_id);

// SAFETY: the handle is a name for something the driver owns; OpenCL calls may be made from any thread.
unsafe impl Send for DeviceId {}
// SAFETY: as above.
unsafe impl Sync for DeviceId {}

pub(crate) fn platforms() -> Result<Vec<PlatformId>, Error> {
    let ids = cl3::platform::get_platform_ids().map_err(|code| failed("clGetPlatformIDs", code))?;
    if ids.is_empty() { Err(Error::NoPlatform) } else { Ok(ids.into_iter().map(PlatformId).collect()) }
}

pub(crate) fn platform_name(id: PlatformId) -> String {
    text(cl3::platform::get_platform_info(id.0, cl3::platform::CL_PLATFORM_NAME))
}

pub(crate) fn devices(id: PlatformId) -> Result<Vec<DeviceId>, Error> {
    let ids = cl3::device::get_device_ids(id.0, cl3::device::CL_DEVICE_TYPE_ALL);
    Ok(ids.map_err(|code| failed("clGetDeviceIDs", code))?.into_iter().map(DeviceId).collect())
}

pub(crate) fn device_text(id: DeviceId, what: u32) -> String {
    text(cl3::device::get_device_info(id.0, what))
}

pub(crate) fn device_number(id: DeviceId, what: u32) -> Option<u64> {
    match cl3::device::get_device_info(id.0, what).ok()? {
        InfoType::Uint(x) => Some(u64::from(x)),
        InfoType::Ulong(x) => Some(x),
        InfoType::Size(x) => Some(x as u64),
        _ => None,
    }
}

/// A list of sizes, which the binding knows as bytes; none if the device does not tell.
pub(crate) fn device_sizes(id: DeviceId, what: u32) -> Vec<usize> {
    let Ok(InfoType::VecUchar(bytes)) = cl3::device::get_device_info(id.0, what) else { return Vec::new() };
    let sizes = bytes.chunks_exact(size_of::<usize>());
    sizes.map(|size| usize::from_ne_bytes(size.try_into().unwrap_or_default())).collect()
}

fn text(info: Result<InfoType, i32>) -> String {
    match info {
        Ok(InfoType::VecUchar(bytes)) => {
            String::from_utf8_lossy(&bytes).trim_end_matches('\0').trim().to_owned()
        }
        _ => String::new(),
    }
}

/// A context for one device.
#[derive(Debug)]
pub(crate) struct Context {
    raw: cl_context,
    device: DeviceId,
    /// For tests: the command with this number, counted from now, fails. 0: none does.
    failing: AtomicU64,
}

// SAFETY: OpenCL objects may be used from any thread; reference counts are the driver's.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub fn new(device: DeviceId) -> Result<Arc<Self>, Error> {
        let raw = cl3::context::create_context(&[device.0], ptr::null(), None, ptr::null_mut())
            .map_err(|code| failed("clCreateContext", code))?;
        Ok(Arc::new(Self { raw, device, failing: AtomicU64::new(0) }))
    }

    pub fn fail_at(&self, command: u64) {
        self.failing.store(command, Release);
    }

    /// What a device that has died says, to the command whose turn it is.
    fn check(&self, call: &'static str) -> Result<(), Error> {
        if self.failing.load(Relaxed) == 0 {
            return Ok(());
        }
        let before = self.failing.fetch_update(AcqRel, Acquire, |n| n.checked_sub(1));
        if before == Ok(1) { Err(failed(call, cl3::error_codes::CL_OUT_OF_RESOURCES)) } else { Ok(()) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the handle is this object's own.
        let _ = unsafe { cl3::context::release_context(self.raw) };
    }
}

/// A queue of commands that begin in order. Its methods return when the command is queued, unless they say otherwise.
#[derive(Debug)]
pub struct Queue {
    raw: cl_command_queue,
    context: Arc<Context>,
}

// SAFETY: as for `Context`.
unsafe impl Send for Queue {}
// SAFETY: as for `Context`.
unsafe impl Sync for Queue {}

impl Drop for Queue {
    fn drop(&mut self) {
        let _ = cl3::command_queue::finish(self.raw);
        // SAFETY: the handle is this object's own.
        let _ = unsafe { cl3::command_queue::release_command_queue(self.raw) };
    }
}

/// When a command was queued, started and ended.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Handed to the driver.
    pub queued: Duration,
    /// Begun by the device.
    pub started: Duration,
    /// Over.
    pub ended: Duration,
}

/// The end of a command, to wait for.
#[derive(Debug)]
pub struct Done(cl_event);

// SAFETY: as for `Context`.
unsafe impl Send for Done {}
// SAFETY: as for `Context`.
unsafe impl Sync for Done {}

impl Done {
    /// Blocks until the command has ended.
    pub fn wait(&self) -> Result<(), Error> {
        cl3::event::wait_for_events(&[self.0]).map_err(|code| failed("clWaitForEvents", code))
    }
    /// Whether the command has ended. Does not block.
    pub fn is_over(&self) -> Result<bool, Error> {
        let call = "clGetEventInfo";
        let status = cl3::event::get_event_info(self.0, cl3::event::CL_EVENT_COMMAND_EXECUTION_STATUS);
        match status.map_err(|code| failed(call, code))? {
            InfoType::Int(code) if code < 0 => Err(failed(call, code)),
            InfoType::Int(code) => Ok(code == 0),
            _ => Err(failed(call, -30)),
        }
    }
}

impl Done {
    /// When a command that has ended was queued, started and ended, on a queue that takes times: by the device's clock. `None`
    /// where the driver does not say.
    pub fn times(&self) -> Option<Times> {
        use cl3::event as e;
        let at = |what| match e::get_event_profiling_info(self.0, what).ok()? {
            InfoType::Ulong(nanos) => Some(Duration::from_nanos(nanos)),
            _ => None,
        };
        Some(Times {
            queued: at(e::CL_PROFILING_COMMAND_QUEUED)?,
            started: at(e::CL_PROFILING_COMMAND_START)?,
            ended: at(e::CL_PROFILING_COMMAND_END)?,
        })
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        // SAFETY: the handle is this object's own.
        let _ = unsafe { cl3::event::release_event(self.0) };
    }
}

fn raw_events(after: &[&Done]) -> Vec<cl_event> {
    after.iter().map(|done| done.0).collect()
}

fn list(events: &[cl_event]) -> *const cl_event {
    if events.is_empty() { ptr::null() } else { events.as_ptr() }
}

impl Queue {
    /// `timed`: the ends of its commands tell when they were ([`Done::times`]).
    pub(crate) fn new(context: &Arc<Context>, timed: bool) -> Result<Self, Error> {
        let properties = if timed { cl3::command_queue::CL_QUEUE_PROFILING_ENABLE } else { 0 };
        // The newer function is not in drivers of OpenCL 1.2.
        #[allow(deprecated)]
        // SAFETY: both handles are live.
        let raw =
            unsafe { cl3::command_queue::create_command_queue(context.raw, context.device.0, properties) }
                .map_err(|code| failed("clCreateCommandQueue", code))?;
        Ok(Self { raw, context: Arc::clone(context) })
    }

    /// Bytes to a buffer; blocks until they are copied out of `from`.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn write(&self, to: &Buffer, at: usize, from: &[u8]) -> Result<(), Error> {
        assert!(at + from.len() <= to.bytes, "write of {} at {at} of {}", from.len(), to.bytes);
        if from.is_empty() {
            return Ok(());
        }
        self.context.check("clEnqueueWriteBuffer")?;
        // SAFETY: the range is inside the buffer; `from` outlives the blocking call.
        let event = unsafe {
            let p = from.as_ptr().cast::<c_void>();
            cl3::command_queue::enqueue_write_buffer(self.raw, to.raw, 1, at, from.len(), p, 0, ptr::null())
        };
        event.map(|e| drop(Done(e))).map_err(|code| failed("clEnqueueWriteBuffer", code))
    }

    /// Bytes of pinned memory to a buffer, begun after the commands `after`. The copy goes on while the caller does; the
    /// pinned memory must not be written before it has ended, which [`Pinned`] makes impossible by being read-only then.
    ///
    /// # Panics
    /// When the ranges do not fit.
    pub fn upload(
        &self,
        to: &Buffer,
        at: usize,
        from: &Arc<Pinned>,
        range: std::ops::Range<usize>,
        after: &[&Done],
    ) -> Result<Done, Error> {
        let bytes = &from.bytes()[range];
        assert!(at + bytes.len() <= to.bytes, "upload of {} at {at} of {}", bytes.len(), to.bytes);
        self.context.check("clEnqueueWriteBuffer")?;
        let after = raw_events(after);
        // SAFETY: the range is inside the buffer; the pinned memory is never written behind an `Arc`, and its release
        // waits for the queue (see `Pinned`).
        let event = unsafe {
            let (p, n) = (bytes.as_ptr().cast::<c_void>(), after.len() as u32);
            cl3::command_queue::enqueue_write_buffer(self.raw, to.raw, 0, at, bytes.len(), p, n, list(&after))
        };
        event.map(Done).map_err(|code| failed("clEnqueueWriteBuffer", code))
    }

    /// Bytes from a buffer; blocks until they are there, and all commands before.
    ///
    /// # Panics
    /// When the range does not fit.
    pub fn read(&self, from: &Buffer, at: usize, to: &mut [u8]) -> Result<(), Error> {
        assert!(at + to.len() <= from.bytes, "read of {} at {at} of {}", to.len(), from.bytes);
        if to.is_empty() {
            return self.finish();
        }
        self.context.check("clEnqueueReadBuffer")?;
        // SAFETY: the range is inside the buffer; `to` outlives the blocking call.
        let event = unsafe {
            let p = to.as_mut_ptr().cast::<c_void>();
            cl3::command_queue::enqueue_read_buffer(self.raw, from.raw, 1, at, to.len(), p, 0, ptr::null())
        };
        event.map(|e| drop(Done(e))).map_err(|code| failed("clEnqueueReadBuffer", code))
    }

    /// Bytes from two buffers, for the wait of one.
    ///
    /// # Panics
    /// When a range does not fit.
    pub fn read_both(
        &self,
        first: (&Buffer, usize, &mut [u8]),
        second: (&Buffer, usize, &mut [u8]),
    ) -> Result<(), Error> {
        let (from, at, to) = first;
        assert!(at + to.len() <= from.bytes && !to.is_empty(), "read of {} at {at}", to.len());
        // SAFETY: the range is inside the buffer; `to` outlives the read, because the queue is in order and this function
        // does not return before a later command, or all, have ended.
        let event = unsafe {
            let p = to.as_mut_ptr().cast::<c_void>();
            cl3::command_queue::enqueue_read_buffer(self.raw, from.raw, 0, at, to.len(), p, 0, ptr::null())
        };
        event.map(|e| drop(Done(e))).map_err(|code| failed("clEnqueueReadBuffer", code))?;
        let (from, at, to) = second;
        self.read(from, at, to).inspect_err(|_| {
            let _ = self.finish();
        })
    }

    /// Zeros `range` of a buffer.
    ///
    /// # Panics
    /// When the range does not fit or is not whole words.
    pub fn zero(&self, buffer: &Buffer, range: std::ops::Range<usize>) -> Result<(), Error> {
        assert!(
            range.end <= buffer.bytes && range.start.is_multiple_of(4) && range.len().is_multiple_of(4),
            "{range:?}"
        );
        if range.is_empty() {
            return Ok(());
        }
        self.fill(buffer, range.start, &[0; 4], range.len() / 4, &[]).map(drop)
    }

    /// Repeats `pattern` so many times from `at` on, begun after the commands `after`. The pattern is taken by the call, so this
    /// is also the way to write a few words without waiting and without keeping them.
    ///
    /// # Panics
    /// When the range does not fit, the pattern has not 4, 8, … or 128 bytes, or `at` is no multiple of that.
    pub fn fill(
        &self,
        buffer: &Buffer,
        at: usize,
        pattern: &[u8],
        times: usize,
        after: &[&Done],
    ) -> Result<Done, Error> {
        let (one, bytes) = (pattern.len(), pattern.len() * times);
        assert!([4, 8, 16, 32, 64, 128].contains(&one) && at.is_multiple_of(one), "{one} bytes at {at}");
        assert!(at + bytes <= buffer.bytes, "fill of {bytes} at {at} of {}", buffer.bytes);
        self.context.check("clEnqueueFillBuffer")?;
        let after = raw_events(after);
        // SAFETY: the pattern is copied by the call; the range is inside the buffer.
        let event = unsafe {
            let (p, n) = (pattern.as_ptr().cast::<c_void>(), after.len() as u32);
            cl3::command_queue::enqueue_fill_buffer(self.raw, buffer.raw, p, one, at, bytes, n, list(&after))
        };
        event.map(Done).map_err(|code| failed("clEnqueueFillBuffer", code))
    }

    /// Runs a kernel on `groups` work-groups of `size`, after the commands `after`.
    ///
    /// # Panics
    /// When the number of arguments is not the kernel's.
    pub fn launch(
        &self,
        kernel: &Kernel,
        args: &[Arg<'_>],
        groups: usize,
        size: usize,
        after: &[&Done],
    ) -> Result<Done, Error> {
        assert_eq!(args.len(), kernel.args, "arguments of a kernel");
        self.context.check("clEnqueueNDRangeKernel")?;
        for (i, arg) in args.iter().enumerate() {
            let (bytes, value): (usize, *const c_void) = match arg {
                Arg::Buffer(buffer) => (size_of::<cl_mem>(), (&raw const buffer.raw).cast()),
                Arg::U32(x) => (4, (&raw const *x).cast()),
                Arg::F32(x) => (4, (&raw const *x).cast()),
                Arg::Local(bytes) => (*bytes, ptr::null()),
            };
            // SAFETY: the value is copied by the call; sizes are those of the types; a wrong type is an error.
            unsafe { cl3::kernel::set_kernel_arg(kernel.raw, i as u32, bytes, value) }
                .map_err(|code| failed("clSetKernelArg", code))?;
        }
        let after = raw_events(after);
        let (all, one) = ([groups * size], [size]);
        // SAFETY: the arrays have one dimension each; buffers outlive the command because the driver holds them until
        // it ends. What the kernel does inside its buffers is the business of its tests.
        let event = unsafe {
            let (n, events) = (after.len() as u32, list(&after));
            cl3::command_queue::enqueue_nd_range_kernel(
                self.raw,
                kernel.raw,
                1,
                ptr::null(),
                all.as_ptr(),
                one.as_ptr(),
                n,
                events,
            )
        };
        event.map(Done).map_err(|code| failed("clEnqueueNDRangeKernel", code))
    }

    /// Hands what is queued to the device.
    pub fn flush(&self) -> Result<(), Error> {
        cl3::command_queue::flush(self.raw).map_err(|code| failed("clFlush", code))
    }
    /// Blocks until all commands have ended.
    pub fn finish(&self) -> Result<(), Error> {
        cl3::command_queue::finish(self.raw).map_err(|code| failed("clFinish", code))
    }
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    /// A buffer.
    Buffer(&'a Buffer),
    /// A `uint`.
    U32(u32),
    /// A `float`.
    F32(f32),
    /// So many bytes of local memory.
    Local(usize),
}

/// Memory of the device.
#[derive(Debug)]
pub struct Buffer {
    raw: cl_mem,
    bytes: usize,
    _context: Arc<Context>,
}

// SAFETY: as for `Context`.
unsafe impl Send for Buffer {}
// SAFETY: as for `Context`.
unsafe impl Sync for Buffer {}

impl Buffer {
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, i32> {
        // SAFETY: no host memory is given.
        let raw = unsafe {
            cl3::memory::create_buffer(
                context.raw,
                cl3::memory::CL_MEM_READ_WRITE,
                bytes.max(1),
                ptr::null_mut(),
            )
        }?;
        Ok(Self { raw, bytes, _context: Arc::clone(context) })
    }
    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the handle is this object's own; the driver keeps the memory until commands that use it have ended.
        let _ = unsafe { cl3::memory::release_mem_object(self.raw) };
    }
}

/// Host memory that the device copies from and to without help: allocated by the driver and mapped for good.
#[derive(Debug)]
pub struct Pinned {
    buffer: Buffer,
    at: *mut u8,
    queue: Arc<Queue>,
}

// SAFETY: the mapping is plain memory; shared access is read-only.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub(crate) fn new(context: &Arc<Context>, queue: &Arc<Queue>, bytes: usize) -> Result<Self, Error> {
        use cl3::memory as m;
        let flags = m::CL_MEM_READ_WRITE | m::CL_MEM_ALLOC_HOST_PTR;
        // SAFETY: no host memory is given.
        let raw = unsafe { m::create_buffer(context.raw, flags, bytes.max(1), ptr::null_mut()) }
            .map_err(|code| failed("clCreateBuffer", code))?;
        let buffer = Buffer { raw, bytes, _context: Arc::clone(context) };
        let mut at = ptr::null_mut();
        // SAFETY: a blocking map of the whole buffer, which nothing else uses.
        let event = unsafe {
            let flags = m::CL_MAP_READ | m::CL_MAP_WRITE;
            let n = bytes.max(1);
            cl3::command_queue::enqueue_map_buffer(queue.raw, raw, 1, flags, 0, n, &mut at, 0, ptr::null())
        };
        event.map(|e| drop(Done(e))).map_err(|code| failed("clEnqueueMapBuffer", code))?;
        Ok(Self { buffer, at: at.cast(), queue: Arc::clone(queue) })
    }
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped for reading and writing as long as this lives; never written through a shared reference.
        unsafe { std::slice::from_raw_parts(self.at, self.buffer.bytes) }
    }
    /// The bytes, to change.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.buffer.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; whoever uploads from it keeps it alive until the copy's event has been waited for.
        let event = unsafe {
            cl3::command_queue::enqueue_unmap_mem_object(
                self.queue.raw,
                self.buffer.raw,
                self.at.cast(),
                0,
                ptr::null(),
            )
        };
        if let Ok(event) = event {
            drop(Done(event));
        }
        let _ = self.queue.finish();
    }
}

/// A built program.
#[derive(Debug)]
pub(crate) struct Program(cl_program);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the handle is this object's own.
        let _ = unsafe { cl3::program::release_program(self.0) };
    }
}

impl Program {
    pub fn from_source(context: &Context, source: &str, options: &str) -> Result<Self, (i32, String)> {
        let raw = cl3::program::create_program_with_source(context.raw, &[source]);
        let program = Self(raw.map_err(|code| (code, String::new()))?);
        program.build(context, options).map(|()| program)
    }
    pub fn from_binary(context: &Context, binary: &[u8], options: &str) -> Result<Self, (i32, String)> {
        // SAFETY: the binary has passed its checksum; the driver checks whether it is its own.
        let raw =
            unsafe { cl3::program::create_program_with_binary(context.raw, &[context.device.0], &[binary]) };
        let program = Self(raw.map_err(|code| (code, String::new()))?);
        program.build(context, options).map(|()| program)
    }
    fn build(&self, context: &Context, options: &str) -> Result<(), (i32, String)> {
        let options = CString::new(options).unwrap_or_default();
        cl3::program::build_program(self.0, &[context.device.0], &options, None, ptr::null_mut()).map_err(
            |code| {
                let what = cl3::program::CL_PROGRAM_BUILD_LOG;
                (code, text(cl3::program::get_program_build_info(self.0, context.device.0, what)))
            },
        )
    }
    pub fn binary(&self) -> Option<Vec<u8>> {
        match cl3::program::get_program_info(self.0, cl3::program::CL_PROGRAM_BINARIES).ok()? {
            InfoType::VecVecUchar(binaries) => binaries.into_iter().next().filter(|b| !b.is_empty()),
            _ => None,
        }
    }
    pub fn kernel(&self, name: &str) -> Result<Kernel, Error> {
        let call = "clCreateKernel";
        let name = CString::new(name).unwrap_or_default();
        let raw = cl3::kernel::create_kernel(self.0, &name).map_err(|code| failed(call, code))?;
        let args = match cl3::kernel::get_kernel_info(raw, cl3::kernel::CL_KERNEL_NUM_ARGS) {
            Ok(InfoType::Uint(n)) => n as usize,
            _ => 0,
        };
        Ok(Kernel { raw, args })
    }
}

/// An entry point of a program. Arguments are part of it until it is launched, so it belongs to one thread at a time.
#[derive(Debug)]
pub struct Kernel {
    raw: cl_kernel,
    args: usize,
}

// SAFETY: as for `Context`; not `Sync`, because setting arguments is not.
unsafe impl Send for Kernel {}

impl Drop for Kernel {
    fn drop(&mut self) {
        // SAFETY: the handle is this object's own.
        let _ = unsafe { cl3::kernel::release_kernel(self.raw) };
    }
}
