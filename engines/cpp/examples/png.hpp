// Pictures as PNG, by stb_image_write.
#pragma once

#include <string>
#include <vector>

#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wshadow"
#include <stb/stb_image_write.h>
#pragma GCC diagnostic pop

// A picture [height, width, 3] of bytes.
inline std::string png(const unsigned char* pixels, int width, int height) {
    std::string bytes;
    auto append = [](void* to, void* from, int size) {
        static_cast<std::string*>(to)->append(static_cast<const char*>(from), static_cast<size_t>(size));
    };
    stbi_write_png_to_func(append, &bytes, width, height, 3, pixels, 3 * width);
    return bytes;
}
