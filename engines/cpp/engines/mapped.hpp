// A file in memory, as long as it is held.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "format.hpp"

namespace accelaes {

class Mapped {
   public:
    // Refused for a file that can't be read or has nothing in it.
    explicit Mapped(const std::string& path) {
        int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
        struct stat about {};
        if (file >= 0 && fstat(file, &about) == 0 && about.st_size > 0) {
            size_ = static_cast<size_t>(about.st_size);
            data_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);  // written by nobody
        }
        if (file >= 0) ::close(file);
        if (data_ == MAP_FAILED)
            throw Refused{ACCELAES_INPUT, path + " can't be read, or is empty; build the bundle again"};
    }
    Mapped(const Mapped&) = delete;
    Mapped& operator=(const Mapped&) = delete;
    ~Mapped() { munmap(data_, size_); }

    char* data() const { return static_cast<char*>(data_); }
    size_t size() const { return size_; }

   private:
    void* data_ = MAP_FAILED;
    size_t size_ = 0;
};

}  // namespace accelaes
