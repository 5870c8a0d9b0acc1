// The device that a bundle's engine and its runs' tensors are on.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "mechanisms.hpp"

namespace accelaes {

const DeviceFunctions* host_functions();

// What a shared object says of a failure, as a sentence; `before` it where the failure is.
[[noreturn]] void fail(const EngineError& error, const std::string& before = "");

class Device {
   public:
    // "cpu", "cuda" or "cuda:1", and a stream of the caller's or null; CUDA's functions are in `folder`.
    Device(const std::string& name, void* stream, const std::string& folder);
    ~Device();
    Device(const Device&) = delete;
    Device& operator=(const Device&) = delete;

    bool is_host() const { return functions_ == host_functions(); }
    const DeviceFunctions* functions() const { return functions_; }
    void* context() const { return context_; }
    int index() const { return index_; }

    // Does `work`, which is named in DeviceFunctions.
    template <typename Member, typename... Arguments>
    void operator()(Member work, Arguments&&... arguments) const {
        (functions_->*work)(context_, std::forward<Arguments>(arguments)...);
    }
    // From the device's memory, when all before it is done.
    void read(void* to, const void* from, size_t bytes) const;

   private:
    const DeviceFunctions* functions_;
    void* context_ = nullptr;
    int index_ = 0;
};

// An array in a device's memory; zero at first.
template <typename Number>
class Buffer {
   public:
    Buffer() = default;
    Buffer(const Device& device, size_t count) : device_(&device), size_(count), data_(room_for(device, count)) {}
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        swap(other);
        return *this;
    }
    ~Buffer() {
        if (data_ != nullptr) (*device_)(&DeviceFunctions::release, static_cast<void*>(data_));
    }

    void swap(Buffer& other) noexcept {
        std::swap(device_, other.device_);
        std::swap(size_, other.size_);
        std::swap(data_, other.data_);
    }
    Number* data() { return data_; }
    const Number* data() const { return data_; }
    size_t size() const { return size_; }
    size_t bytes() const { return size_ * sizeof(Number); }
    bool empty() const { return size_ == 0; }

   private:
    static Number* room_for(const Device& device, size_t count) {
        void* made = device.functions()->allocate(device.context(), count * sizeof(Number));
        if (made == nullptr) throw std::bad_alloc();
        return static_cast<Number*>(made);
    }

    const Device* device_ = nullptr;
    size_t size_ = 0;
    Number* data_ = nullptr;
};

}  // namespace accelaes
