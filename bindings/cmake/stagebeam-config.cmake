# find_package(stagebeam): stagebeam::stagebeam (C) and stagebeam::cpp (C++20), beside this file.
get_filename_component(_stagebeam_bindings "${CMAKE_CURRENT_LIST_DIR}" DIRECTORY)
set(_stagebeam_library "${_stagebeam_bindings}/c/libstagebeam.so")
if(NOT EXISTS "${_stagebeam_library}")
  set(stagebeam_FOUND FALSE)
  set(stagebeam_NOT_FOUND_MESSAGE "${_stagebeam_library} is not there: this build has no C interface")
  return()
endif()

if(NOT TARGET stagebeam::stagebeam)
  add_library(stagebeam::stagebeam SHARED IMPORTED)
  set_target_properties(stagebeam::stagebeam PROPERTIES
    IMPORTED_LOCATION "${_stagebeam_library}"
    IMPORTED_SONAME libstagebeam.so
    INTERFACE_INCLUDE_DIRECTORIES "${_stagebeam_bindings}/c")

  find_package(Threads REQUIRED)
  add_library(stagebeam::cpp INTERFACE IMPORTED)
  set_target_properties(stagebeam::cpp PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${_stagebeam_bindings}/cpp"
    INTERFACE_COMPILE_FEATURES cxx_std_20
    INTERFACE_LINK_LIBRARIES "stagebeam::stagebeam;Threads::Threads")
endif()
unset(_stagebeam_library)
unset(_stagebeam_bindings)
