// Loads a TensorRT engine and runs it once on zeros: ./engine PLAN PROFILE NAME=1x64 ...
//
// TensorRT 10.3 to 11 (JetPack 6 and 7), C++17. It takes an engine that carries its weights.
#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace {

class Logger : public nvinfer1::ILogger {
    void log(Severity severity, const char* message) noexcept override {
        if (severity <= Severity::kWARNING) std::fprintf(stderr, "%s\n", message);
    }
};

void check(bool good, const std::string& what) {
    if (!good) {
        std::fprintf(stderr, "error: %s\n", what.c_str());
        std::exit(1);
    }
}

void check(cudaError_t status) { check(status == cudaSuccess, cudaGetErrorString(status)); }

nvinfer1::Dims readShape(const std::string& text) {
    nvinfer1::Dims shape{};
    for (std::size_t start = 0; start < text.size();) {
        const std::size_t end = std::min(text.find('x', start), text.size());
        shape.d[shape.nbDims++] = std::atoi(text.substr(start, end - start).c_str());
        start = end + 1;
    }
    return shape;
}

std::size_t bytesOf(const nvinfer1::Dims& shape, nvinfer1::DataType type) {
    std::size_t size = 4;
    if (type == nvinfer1::DataType::kINT64) size = 8;
    if (type == nvinfer1::DataType::kHALF) size = 2;
    if (type == nvinfer1::DataType::kBOOL || type == nvinfer1::DataType::kINT8 || type == nvinfer1::DataType::kUINT8)
        size = 1;
    for (int i = 0; i < shape.nbDims; ++i) size *= static_cast<std::size_t>(shape.d[i]);
    return size;
}

}  // namespace

int main(int argc, char** argv) {
    check(argc >= 3, "usage: engine PLAN PROFILE NAME=1x64 ...");
    std::ifstream file(argv[1], std::ios::binary);
    const std::vector<char> plan((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    check(!plan.empty(), std::string("there is no engine ") + argv[1]);

    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
    check(runtime != nullptr, "TensorRT finds no usable GPU");
    std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    check(engine != nullptr, "this TensorRT does not load the engine; build it on this device");
    std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
    check(context != nullptr, "there is too little memory to run the engine");

    cudaStream_t stream{};
    check(cudaStreamCreate(&stream));
    check(context->setOptimizationProfileAsync(std::atoi(argv[2]), stream), "the engine has no such profile");
    check(cudaStreamSynchronize(stream));

    for (int i = 3; i < argc; ++i) {
        const std::string argument = argv[i];
        const std::size_t sign = argument.find('=');
        check(sign != std::string::npos, "write inputs as NAME=1x64");
        const std::string name = argument.substr(0, sign);
        check(context->setInputShape(name.c_str(), readShape(argument.substr(sign + 1))),
              "the profile does not take " + argument);
    }

    // Managed memory is read by CPU and GPU at one address; on a Jetson nothing is copied.
    std::map<std::string, void*> buffers;
    for (int i = 0; i < engine->getNbIOTensors(); ++i) {
        const char* name = engine->getIOTensorName(i);
        const std::size_t size = bytesOf(context->getTensorShape(name), engine->getTensorDataType(name));
        void*& buffer = buffers[name];
        check(cudaMallocManaged(&buffer, size == 0 ? 1 : size, cudaMemAttachGlobal));
        check(cudaMemset(buffer, 0, size));
        check(context->setTensorAddress(name, buffer), std::string("the engine takes no address for ") + name);
    }
    check(context->enqueueV3(stream), "the engine failed");
    check(cudaStreamSynchronize(stream));

    for (int i = 0; i < engine->getNbIOTensors(); ++i) {
        const char* name = engine->getIOTensorName(i);
        if (engine->getTensorIOMode(name) != nvinfer1::TensorIOMode::kOUTPUT) continue;
        if (engine->getTensorDataType(name) != nvinfer1::DataType::kFLOAT) continue;
        std::printf("%s begins with %g\n", name, static_cast<double>(*static_cast<const float*>(buffers[name])));
    }
    for (auto& [name, buffer] : buffers) check(cudaFree(buffer));
    check(cudaStreamDestroy(stream));
    return 0;
}
