// A package of AOTInductor's: a zip whose entries are stored as they are.
#pragma once

#include <string>

namespace aoti {

// Its library, and for a GPU its kernels, in a temporary folder that goes with it.
class Extracted {
   public:
    // Refused for a damaged package, or where there is no room.
    Extracted(const std::string& path, bool kernels);
    ~Extracted() { remove(); }
    Extracted(const Extracted&) = delete;
    Extracted& operator=(const Extracted&) = delete;

    const std::string& library() const { return library_; }
    const std::string& folder() const { return folder_; }
    // Before its time: what is open stays so.
    void remove();

   private:
    std::string folder_, library_;
};

}  // namespace aoti
