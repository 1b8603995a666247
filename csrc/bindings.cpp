// The module pyflow._C: the only file that knows Python. pyflow/native.py checks every argument before it comes here.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <optional>

#include "aoti_denoiser.hpp"
#include "errors.hpp"
#include "fused_step.hpp"
#include "network/executor.hpp"
#include "onnx_denoiser.hpp"
#include "philox.hpp"
#include "sampler.hpp"
#include "to_uint8.hpp"

namespace py = pybind11;

namespace pyflow {

namespace {

using Doubles = py::array_t<double, py::array::c_style>;
using FloatArray = py::array_t<float, py::array::c_style>;
using Int64Array = py::array_t<int64_t, py::array::c_style>;
using Uint8Array = py::array_t<uint8_t, py::array::c_style>;
using Uint32Array = py::array_t<uint32_t, py::array::c_style>;

template <class Array>
auto data_of(const std::optional<Array>& array) {
    return array ? array->data() : nullptr;
}

float* target_of(std::optional<FloatArray>& array) { return array ? array->mutable_data() : nullptr; }

Isa isa_or_chosen(const std::optional<std::string>& name) { return name ? isa_named(*name, "isa") : chosen_isa(); }

class CallableBound final : public Bound {
  public:
    CallableBound(py::object function, py::tuple arguments)
        : function_(std::move(function)), arguments_(std::move(arguments)) {}

    ~CallableBound() override {
        const py::gil_scoped_acquire gil;
        function_.release().dec_ref();
        arguments_.release().dec_ref();
    }

    void run() override {
        const py::gil_scoped_acquire gil;
        const auto result = py::reinterpret_steal<py::object>(PyObject_CallObject(function_.ptr(), arguments_.ptr()));
        if (!result) throw py::error_already_set();
    }

  private:
    py::object function_;
    py::tuple arguments_;
};

// Calls function(x, s, t, label, out) on views of the workspace; `out` is for the function to fill. The views are made
// once a run, and own the workspace: a function that keeps one reads stale numbers, never freed memory.
class CallableDenoiser final : public Denoiser {
  public:
    CallableDenoiser(py::object function, std::vector<int64_t> shape, int64_t extra)
        : Denoiser(std::move(shape), extra, {"x", "s", "t", "label"}), function_(std::move(function)) {}

    std::unique_ptr<Bound> bind(const Buffers& buffers) const override {
        const py::gil_scoped_acquire gil;
        using Memory = std::shared_ptr<const void>;
        const py::capsule owner(new Memory(buffers.memory), [](void* memory) { delete static_cast<Memory*>(memory); });
        std::vector<int64_t> given = input_shape(), made = shape();
        for (std::vector<int64_t>* full : {&given, &made}) full->insert(full->begin(), buffers.batch);
        const std::vector<int64_t> flat{buffers.batch};
        auto arguments = py::make_tuple(read_only(given, buffers.x, owner), read_only(flat, buffers.s, owner),
                                        read_only(flat, buffers.t, owner), read_only(flat, buffers.label, owner),
                                        py::array_t<float>(made, buffers.out, owner));
        return std::make_unique<CallableBound>(function_, std::move(arguments));
    }

  private:
    template <class Number>
    static py::array read_only(const std::vector<int64_t>& shape, const Number* data, const py::capsule& owner) {
        py::array_t<Number> view(shape, data, owner);
        view.attr("setflags")(py::arg("write") = false);
        return std::move(view);
    }

    py::object function_;
};

using network::NetworkDenoiser;

// The network is read where its buffer lies, which Python keeps, unresized, for as long.
std::unique_ptr<NetworkDenoiser> network_denoiser(const py::object& content, const std::optional<std::string>& isa,
                                                  int threads, bool profile) {
    const auto release = [](Py_buffer* view) {
        const py::gil_scoped_acquire gil;
        PyBuffer_Release(view);
        delete view;
    };
    auto view = std::make_unique<Py_buffer>();
    if (PyObject_GetBuffer(content.ptr(), view.get(), PyBUF_SIMPLE) != 0) throw py::error_already_set();
    const std::shared_ptr<const Py_buffer> owner(view.release(), release);
    const Isa chosen = isa_or_chosen(isa);
    const py::gil_scoped_release unlocked;
    return std::make_unique<NetworkDenoiser>(owner->buf, owner->len, owner, chosen, threads, profile);
}

py::list take_profile(const NetworkDenoiser& denoiser) {
    py::list rows;
    for (const NetworkDenoiser::Row& row : denoiser.take_profile())
        rows.append(py::make_tuple(row.name, row.kind, row.algorithm, row.seconds, row.calls));
    return rows;
}

// Between rows: the caller's callback, and a look for Ctrl-C at most every 20 ms, since taking the GIL costs as much as
// a small row.
class AfterRow {
  public:
    explicit AfterRow(const py::object& callback) : callback_(callback) {}

    void operator()(int64_t row, Clock::time_point now) {
        const bool due = now - looked_ >= std::chrono::milliseconds(20);
        if (!due && callback_.is_none()) return;
        const py::gil_scoped_acquire gil;
        if (due) {
            looked_ = now;
            if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        }
        if (!callback_.is_none()) callback_(row);
    }

  private:
    const py::object& callback_;
    Clock::time_point looked_ = Clock::now();
};

py::tuple run_sample(const Denoiser& denoiser, const Doubles& plan, int64_t batch, uint32_t seed, uint32_t first,
                     double guidance, const std::optional<Int64Array>& label, int64_t null_label,
                     const std::optional<FloatArray>& mask, const std::optional<FloatArray>& image,
                     const std::optional<FloatArray>& noise0, const std::optional<FloatArray>& told,
                     const py::object& on_row) {
    Request request{};
    request.rows.reserve(plan.shape(0));
    for (py::ssize_t i = 0; i < plan.shape(0); ++i) {
        const double* row = plan.data(i, 0);
        request.rows.push_back({row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7]});
    }
    request.batch = batch;
    request.seed = seed;
    request.first = first;
    request.guidance = guidance;
    request.labels = data_of(label);
    request.null_label = null_label;
    request.mask = data_of(mask);
    request.image = data_of(image);
    request.noise0 = data_of(noise0);
    request.told = data_of(told);
    AfterRow after_row(on_row);
    request.after_row = std::ref(after_row);
    std::vector<int64_t> shape{batch};
    shape.insert(shape.end(), denoiser.shape().begin(), denoiser.shape().end());
    FloatArray states(shape);
    Doubles row_seconds(plan.shape(0)), denoiser_seconds(plan.shape(0));
    const Output output{states.mutable_data(), row_seconds.mutable_data(), denoiser_seconds.mutable_data()};
    {
        const py::gil_scoped_release unlocked;
        sample(denoiser, request, output);
    }
    return py::make_tuple(std::move(states), std::move(row_seconds), std::move(denoiser_seconds));
}

void run_fused_step(const std::array<double, 8>& row, const FloatArray& x, const FloatArray& cond,
                    const std::optional<FloatArray>& uncond, double guidance, const std::optional<FloatArray>& previous,
                    const std::optional<FloatArray>& noise, const std::optional<FloatArray>& mask,
                    const std::optional<FloatArray>& image, const std::optional<FloatArray>& noise0, FloatArray out,
                    std::optional<FloatArray> guided, const std::optional<std::string>& isa) {
    Step step{};
    step.row = {row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7]};
    step.guidance = static_cast<float>(guidance);
    step.size = x.size();
    step.x = x.data();
    step.cond = cond.data();
    step.uncond = data_of(uncond);
    step.previous = data_of(previous);
    step.noise = data_of(noise);
    step.mask = data_of(mask);
    step.image = data_of(image);
    step.noise0 = data_of(noise0);
    step.out = out.mutable_data();
    step.guided = target_of(guided);
    const Isa chosen = isa_or_chosen(isa);
    const py::gil_scoped_release unlocked;
    fused_step(step, chosen);
}

void run_normal(uint32_t seed, uint32_t first, int64_t pictures, int64_t size, uint32_t row, FloatArray out,
                const std::optional<std::string>& isa) {
    float* target = out.mutable_data();
    const Isa chosen = isa_or_chosen(isa);
    const py::gil_scoped_release unlocked;
    normal(seed, first, pictures, size, row, target, chosen);
}

Uint32Array run_philox_words(const std::array<uint32_t, 4>& counter, const std::array<uint32_t, 2>& key, int64_t blocks,
                             const std::optional<std::string>& isa) {
    Uint32Array words({blocks, int64_t{4}});
    philox_words({counter, key}, blocks, words.mutable_data(), isa_or_chosen(isa));
    return words;
}

Uint8Array run_to_uint8(const FloatArray& pictures) {
    const int64_t batch = pictures.shape(0), channels = pictures.shape(1);
    const int64_t height = pictures.shape(2), width = pictures.shape(3);
    Uint8Array out({batch, height, width, channels});
    const float* source = pictures.data();
    uint8_t* target = out.mutable_data();
    const py::gil_scoped_release unlocked;
    to_uint8(source, batch, channels, height * width, target);
    return out;
}

void translate(std::exception_ptr error) {
    const auto raise = [](const char* name, const std::exception& cause) {
        py::set_error(py::module_::import("pyflow.errors").attr(name), cause.what());
    };
    try {
        std::rethrow_exception(error);
    } catch (const InvalidInput& cause) {
        raise("InvalidInput", cause);
    } catch (const InvalidArtefact& cause) {
        raise("InvalidArtefact", cause);
    } catch (const BackendUnavailable& cause) {
        raise("BackendUnavailable", cause);
    }
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "The C++ room of pyflow; pyflow.native is its front.";
    py::register_exception_translator(translate);

    m.def("isa", [] { return name_of(chosen_isa()); });
    m.def("supported_isas", [] {
        std::vector<std::string> names;
        for (Isa isa : supported_isas()) names.emplace_back(name_of(isa));
        return names;
    });
    m.def("fused_step", run_fused_step, py::arg("row"), py::arg("x").noconvert(), py::arg("cond").noconvert(),
          py::arg("uncond").noconvert(), py::arg("guidance"), py::arg("previous").noconvert(),
          py::arg("noise").noconvert(), py::arg("mask").noconvert(), py::arg("image").noconvert(),
          py::arg("noise0").noconvert(), py::arg("out").noconvert(), py::arg("guided").noconvert(),
          py::arg("isa") = py::none());
    m.def("normal", run_normal, py::arg("seed"), py::arg("first"), py::arg("pictures"), py::arg("size"), py::arg("row"),
          py::arg("out").noconvert(), py::arg("isa") = py::none());
    m.def("philox_words", run_philox_words, py::arg("counter"), py::arg("key"), py::arg("blocks"),
          py::arg("isa") = py::none());
    m.def("to_uint8", run_to_uint8, py::arg("pictures").noconvert());

    py::class_<Denoiser>(m, "Denoiser")
        .def_property_readonly("shape", [](const Denoiser& denoiser) { return py::tuple(py::cast(denoiser.shape())); })
        .def_property_readonly("extra", &Denoiser::extra)
        .def_property_readonly("inputs",
                               [](const Denoiser& denoiser) { return py::tuple(py::cast(denoiser.inputs())); });
    py::class_<OnnxDenoiser, Denoiser>(m, "OnnxDenoiser")
        .def(py::init([](const std::string& library, const py::bytes& model, int threads) {
                 const std::string_view bytes = model;
                 const py::gil_scoped_release unlocked;
                 return std::make_unique<OnnxDenoiser>(library, bytes.data(), bytes.size(), threads);
             }),
             py::arg("library"), py::arg("model"), py::arg("threads"));
    py::class_<AotiDenoiser, Denoiser>(m, "AotiDenoiser")
        .def(py::init<const std::string&, const std::string&, std::vector<int64_t>, int64_t, std::vector<std::string>,
                      int64_t, const std::string&, bool>(),
             py::arg("library"), py::arg("torch_library"), py::arg("shape"), py::arg("extra"), py::arg("inputs"),
             py::arg("classes"), py::arg("device"), py::arg("staged") = false,
             py::call_guard<py::gil_scoped_release>());
    py::class_<NetworkDenoiser, Denoiser>(m, "NetworkDenoiser")
        .def(py::init(&network_denoiser), py::arg("content"), py::arg("isa"), py::arg("threads"), py::arg("profile"))
        .def("describe", &NetworkDenoiser::describe)
        .def("workspace_bytes", &NetworkDenoiser::workspace_bytes, py::arg("batch"))
        .def("take_profile", take_profile);
    py::class_<CallableDenoiser, Denoiser>(m, "CallableDenoiser")
        .def(py::init<py::object, std::vector<int64_t>, int64_t>(), py::arg("function"), py::arg("shape"),
             py::arg("extra"));

    m.def("sample", run_sample, py::arg("denoiser"), py::arg("plan").noconvert(), py::arg("batch"), py::arg("seed"),
          py::arg("first"), py::arg("guidance"), py::arg("label").noconvert(), py::arg("null_label"),
          py::arg("mask").noconvert(), py::arg("image").noconvert(), py::arg("noise0").noconvert(),
          py::arg("told").noconvert(), py::arg("on_row"));
}

}  // namespace pyflow
