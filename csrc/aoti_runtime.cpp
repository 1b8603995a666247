#include "aoti_runtime.hpp"

#include <dlfcn.h>

#include <stdexcept>

#include "errors.hpp"

namespace pyflow {

namespace {

template <class Function>
void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
}

void* opened_torch(const std::string& library) {
    // A second libtorch in one process would know nothing of the first one's tensors.
    void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_NOLOAD);
    if (!handle)
        throw BackendUnavailable(library +
                                 " is not loaded in this process; expected the library of the imported torch");
    return handle;
}

void* opened_network(const std::string& library) {
    void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        throw InvalidArtefact("the compiled network could not be opened: " + std::string(dlerror()) +
                              "; it may come from another machine or another torch: export it again");
    return handle;
}

// What follows the first line is a trace of the stack.
std::string first_line(const char* message) {
    const std::string text = message ? message : "";
    return text.empty() ? "it does not tell why" : text.substr(0, text.find('\n'));
}

}  // namespace

AotiRuntime::AotiRuntime(const std::string& library, const std::string& torch_library)
    : torch_(opened_torch(torch_library), dlclose), network_(opened_network(library), dlclose) {
    const auto network = [&](const char* name, auto& function) {
        find(network_.get(), name, function);
        if (!function)
            throw InvalidArtefact("the compiled network does not export " + std::string(name) +
                                  "; expected a library of AOTInductor: export it again");
    };
    const auto torch = [&](const char* name, auto& function) {
        find(torch_.get(), name, function);
        if (!function)
            throw BackendUnavailable(torch_library + " does not export " + name +
                                     "; expected torch 2.11 or newer: pip install -U torch");
    };
    network("AOTInductorModelContainerCreateWithDevice", CreateWithDevice);
    network("AOTInductorModelContainerDelete", Delete);
    network("AOTInductorModelContainerRun", Run);
    network("AOTInductorModelContainerGetNumInputs", GetNumInputs);
    network("AOTInductorModelContainerGetNumOutputs", GetNumOutputs);
    torch("aoti_torch_device_type_cpu", device_type_cpu);
    torch("aoti_torch_device_type_cuda", device_type_cuda);
    torch("aoti_torch_dtype_float32", dtype_float32);
    torch("aoti_torch_dtype_int64", dtype_int64);
    torch("aoti_torch_create_tensor_from_blob", create_tensor_from_blob);
    torch("aoti_torch_empty_strided", empty_strided);
    torch("aoti_torch_new_tensor_handle", new_tensor_handle);
    torch("aoti_torch_delete_tensor_object", delete_tensor_object);
    torch("aoti_torch_copy_", copy);
    torch("aoti_torch_get_dtype", get_dtype);
    torch("aoti_torch_get_dim", get_dim);
    torch("aoti_torch_get_sizes", get_sizes);
    torch("torch_parallel_for", parallel_for);
    // In a library of torch that only networks for a GPU link to.
    find(network_.get(), "aoti_torch_get_current_cuda_stream", current_cuda_stream);
    // Younger than the rest: without them a failure has no message.
    find(network_.get(), "AOTInductorGetLastError", get_last_error_);
    find(torch_.get(), "torch_exception_get_what_without_backtrace", exception_what_);
}

std::string AotiRuntime::reason() const {
    const char* what = exception_what_ ? exception_what_() : nullptr;
    return first_line(what);
}

void AotiRuntime::check(int32_t status) const {
    if (status != 0) throw std::runtime_error("libtorch failed: " + reason());
}

std::string AotiRuntime::failure() const {
    const char* message = nullptr;
    if (get_last_error_) get_last_error_(&message);
    const std::string told = first_line(message);
    // A call from the network into libtorch: the network knows only which one, with all its arguments.
    if (told.find("API call failed") == std::string::npos) return told;
    return told.substr(0, told.find('(')) + ": " + reason();
}

}  // namespace pyflow
